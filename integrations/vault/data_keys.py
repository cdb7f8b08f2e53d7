"""Data keys: created on first use, stored wrapped in the database, and unwrapped in memory for a short time."""

import secrets
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock, Timer

from django.db import transaction

from integrations.models import DataKey, KeyCheck
from integrations.vault import kek_providers, keyring
from integrations.vault.envelope import KEY_BYTES
from integrations.vault.errors import DataKeyNotFound, KekUnavailable, WrapInvalid
from integrations.vault.kek import Context, Wrapped
from rensei.audit.models import AuditEvent
from rensei.core.errors import NotFound
from rensei.core.transactions import durable, leave_database
from rensei.orgs import locks
from rensei.orgs.models import Org

RETIRED = "vault.outer_key_retired"
CACHE_SECONDS = 120
CACHE_SIZE = 1000
_ORG_DELETED = "the organization was deleted, and its data keys with it"


class UnwrappedKeys:
    """
    A short-lived cache of unwrapped data keys. A timer drops them after at most two minutes, even if used again.

    The cache key is the whole row, wrapped bytes included, and the row is read from the database each time, so a key
    that was deleted or wrapped again is not served from here. A key whose row was rolled back never is.
    """

    def __init__(self) -> None:
        self._keys: dict[tuple[object, ...], tuple[float, bytes]] = {}
        self._lock = Lock()
        self._timer: Timer | None = None
        self._under_way: dict[tuple[object, ...], Future[bytes]] = {}

    def unwrap_once(self, name: tuple[object, ...], unwrap: Callable[[], bytes]) -> bytes:
        """
        Unwrap a key and keep it. Simultaneous callers wait for one unwrapping.

        :raises Exception: what `unwrap` raises, for each of them
        """
        with self._lock:
            expires_at, key = self._keys.get(name, (0.0, b""))
            if time.monotonic() < expires_at:
                return key  # Another caller has unwrapped it since this one looked.
            future = self._under_way.get(name)
            is_ours = future is None
            if future is None:
                future = self._under_way[name] = Future()
        if is_ours:
            self._unwrap_into(future, name, unwrap)
        return future.result()

    def _unwrap_into(self, future: "Future[bytes]", name: tuple[object, ...], unwrap: Callable[[], bytes]) -> None:
        try:
            key = unwrap()
            self.put(name, key)
            future.set_result(key)
        except BaseException as fault:  # noqa: BLE001 - each of the waiting callers raises it
            future.set_exception(fault)
        finally:
            with self._lock:
                del self._under_way[name]

    def get(self, name: tuple[object, ...]) -> bytes | None:
        with self._lock:
            expires_at, key = self._keys.get(name, (0.0, None))
        return key if time.monotonic() < expires_at else None

    def put(self, name: tuple[object, ...], key: bytes) -> None:
        with self._lock:
            self._keys.pop(name, None)
            while len(self._keys) >= CACHE_SIZE:
                del self._keys[next(iter(self._keys))]  # The oldest: a dict preserves its order.
            self._keys[name] = (time.monotonic() + CACHE_SECONDS, key)
            # A timer started before a fork does not run in the child process.
            if self._timer is None or not self._timer.is_alive():
                self._wait_for_the_oldest()

    def clear(self) -> None:
        with self._lock:
            self._keys.clear()

    def _wait_for_the_oldest(self) -> None:
        expires_at, _ = next(iter(self._keys.values()))
        self._timer = Timer(max(0, expires_at - time.monotonic()), self._drop_expired)
        self._timer.daemon = True
        self._timer.start()

    def _drop_expired(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._keys = {name: entry for name, entry in self._keys.items() if entry[0] > now}
            if self._keys:
                self._wait_for_the_oldest()
            else:
                self._timer = None

    def __len__(self) -> int:
        return len(self._keys)


unwrapped = UnwrappedKeys()


def current_key(*, org: Org | None, purpose: DataKey.Purpose = DataKey.Purpose.SEAL) -> tuple[uuid.UUID, bytes]:
    """
    Return the newest data key of an organization, or of the platform, with its id. The first use creates one.

    :raises VaultFault: if it cannot be unwrapped, or a first one cannot be wrapped, or the organization is deleted
    """
    newest = DataKey.objects.filter(org=org, purpose=purpose).order_by("-version")
    row = newest.first()
    if row is None:
        # Two concurrent first uses both insert. The unique constraint accepts one row, and both use it.
        made = _make(org=org, purpose=purpose)
        with transaction.atomic():
            if org is not None:
                _lock(org)
            DataKey.objects.bulk_create([made], ignore_conflicts=True)
        row = newest.get()
    return row.id, _unwrap(row)


def versions_of(*, org: Org | None, purpose: DataKey.Purpose) -> dict[int, bytes]:
    """
    Return all versions of a data key, the newest first. The first use creates one.

    :raises VaultFault: if one cannot be unwrapped
    """
    current_key(org=org, purpose=purpose)
    rows = DataKey.objects.filter(org=org, purpose=purpose).order_by("-version")
    return {row.version: _unwrap(row) for row in list(rows)}


def add_version(*, org: Org | None, purpose: DataKey.Purpose) -> None:
    """
    Add a version of a data key. Of two simultaneous calls, the unique constraint accepts one.

    :raises VaultFault: if it cannot be wrapped, or the keys of the organization are destroyed meanwhile
    """
    versions = DataKey.objects.filter(org=org, purpose=purpose).order_by("-version")
    before = versions.first()
    row = _make(org=org, purpose=purpose, version=before.version + 1 if before else 1)
    with durable():
        if org is not None:
            # A destruction holds this lock until the data keys are deleted.
            _lock(org)
        if before is not None and not versions.filter(pk=before.pk).exists():
            raise DataKeyNotFound("the data keys were destroyed meanwhile")
        DataKey.objects.bulk_create([row], ignore_conflicts=True)


def key_by_id(key_id: uuid.UUID, *, org: Org | None) -> bytes:
    """
    Return one data key of the given owner.

    :raises VaultFault: if the owner has no such key, or it cannot be unwrapped
    """
    row = DataKey.objects.filter(pk=key_id, org=org, purpose=DataKey.Purpose.SEAL).first()
    if row is None:
        raise DataKeyNotFound(f"the data key {key_id} of a stored credential is gone")
    return _unwrap(row)


def check_kek(kek_id: str) -> None:
    """
    Check that a key-encryption key is available, and is the same as at its first use.

    :raises VaultFault: if it is not
    """
    provider = kek_providers.holding(kek_id)
    first = KeyCheck.objects.filter(pk=kek_id).values_list("value", flat=True).first()
    provider.check(kek_id, bytes(first) if first is not None else provider.check_value(kek_id))


def wrap(row: DataKey, key: bytes) -> None:
    """
    Wrap a data key for its row, by the current key-encryption key. Nothing is saved.

    :raises VaultFault: if it cannot be wrapped
    """
    provider = kek_providers.current()
    row.kek_id = provider.current_id()
    wrapped = provider.wrap(key, kek_id=row.kek_id, context=_wrap_context(row))
    row.kek_version, row.wrapped = wrapped.version, wrapped.blob


def unwrap(row: DataKey) -> bytes:
    """
    Unwrap a data key, past the cache.

    :raises VaultFault: if it cannot be unwrapped
    """
    try:
        wrapped = Wrapped(blob=bytes(row.wrapped), version=row.kek_version)
    except TypeError:
        # SQLite stores text in a column of bytes.
        raise WrapInvalid("it is no bytes") from None
    provider = kek_providers.holding(row.kek_id)
    try:
        return provider.unwrap(wrapped, kek_id=row.kek_id, context=_wrap_context(row))
    except WrapInvalid:
        check_kek(row.kek_id)  # Another key under the same id is a different fault, with another remedy.
        raise


def audited_name(kek_id: str) -> str:
    """Shorten the id of a key-encryption key to what the audit log holds."""
    return kek_id[:128]


def note_first_use(kek_id: str) -> None:
    """
    Store the check value of a key-encryption key at its first use, and check it from then on.

    :raises VaultFault: if the key is not available, is another one, or was retired
    """
    if not KeyCheck.objects.filter(pk=kek_id).exists():
        if AuditEvent.objects.filter(org_id=None, action=RETIRED, object_id=audited_name(kek_id)).exists():
            raise KekUnavailable(f"the key {kek_id} was retired: {_instead_of_retired(kek_id)}")
        value = kek_providers.holding(kek_id).check_value(kek_id)
        KeyCheck.objects.bulk_create([KeyCheck(kek_id=kek_id, value=value)], ignore_conflicts=True)
    check_kek(kek_id)


def _instead_of_retired(kek_id: str) -> str:
    if kek_id.startswith(keyring.ID_PREFIX):
        return "this machine has an older copy of the keyring, so copy the keyring to it again"
    return "put another one first in RENSEI_KEK_URL, or add #name to its address to begin with it anew"


def _lock(org: Org) -> None:
    """:raises DataKeyNotFound: if the organization is being deleted, so that none is added behind the deletion"""
    try:
        locks.lock(org.pk)
    except NotFound:
        raise DataKeyNotFound(_ORG_DELETED) from None


def _make(*, org: Org | None, purpose: DataKey.Purpose, version: int = 1) -> DataKey:
    if org is not None and Org.objects.filter(pk=org.pk).exclude(deleting_at=None).exists():
        # Before a key service makes a key for it.
        raise DataKeyNotFound(_ORG_DELETED)
    note_first_use(kek_providers.current().current_id())
    row = DataKey(id=uuid.uuid4(), org=org, purpose=purpose, version=version)
    wrap(row, secrets.token_bytes(KEY_BYTES))
    return row


def _unwrap(row: DataKey) -> bytes:
    name = (row.kek_id, row.kek_version, row.id, row.org_id, row.purpose, row.version, bytes(row.wrapped))
    key = unwrapped.get(name)
    if key is not None:
        return key
    if kek_providers.holding(row.kek_id).is_remote:
        leave_database()  # Those that wait for another caller's unwrapping hold no connection either.
    return unwrapped.unwrap_once(name, lambda: unwrap(row))


def _wrap_context(row: DataKey) -> Context:
    return {
        "domain": "rensei.dek.v1",
        "kek": row.kek_id,
        "owner": row.org_id or "platform",
        "purpose": row.purpose,
        "dataKey": str(row.id),
        "version": str(row.version),
    }
