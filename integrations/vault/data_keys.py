"""Data keys: created on first use, stored wrapped in the database, and unwrapped in memory for a short time."""

import hmac
import secrets
import time
import uuid
from threading import Lock, Timer

from django.conf import settings

from integrations.models import DataKey, KeyCheck
from integrations.vault.envelope import KEY_BYTES
from integrations.vault.errors import DataKeyNotFound, KekChanged
from integrations.vault.framing import length_prefixed
from integrations.vault.kek import KekProvider, LocalKeyring
from rensei.orgs.models import Org

CACHE_SECONDS = 120
CACHE_SIZE = 1000


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


def provider() -> KekProvider:
    """Return the provider of the key-encryption keys."""
    return LocalKeyring(settings.RENSEI_VAULT_KEYRING)


def current_key(*, org: Org | None, purpose: DataKey.Purpose = DataKey.Purpose.SEAL) -> tuple[uuid.UUID, bytes]:
    """
    Return the newest data key of an organization, or of the platform, with its id. The first use creates one.

    :raises VaultFault: if it cannot be unwrapped, or a first one cannot be wrapped
    """
    newest = DataKey.objects.filter(org=org, purpose=purpose).order_by("-version")
    row = newest.first()
    if row is None:
        # Two concurrent first uses both insert. The unique constraint accepts one row, and both use it.
        DataKey.objects.bulk_create([_make(org=org, purpose=purpose)], ignore_conflicts=True)
        row = newest.get()
    return row.id, _unwrap(row)


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
    Check that a key-encryption key is available, and has the same bytes as at its first use.

    :raises VaultFault: if it is not
    """
    value = provider().health(kek_id)
    first = KeyCheck.objects.filter(pk=kek_id).first()
    if first is not None and not hmac.compare_digest(bytes(first.value), value):
        raise KekChanged(f"the key {kek_id} is not the one that sealed: its bytes differ")


def _make(*, org: Org | None, purpose: DataKey.Purpose) -> DataKey:
    kek_id = provider().current_id()
    KeyCheck.objects.bulk_create([KeyCheck(kek_id=kek_id, value=provider().health(kek_id))], ignore_conflicts=True)
    check_kek(kek_id)
    row = DataKey(id=uuid.uuid4(), org=org, purpose=purpose, version=1, kek_id=kek_id)
    row.wrapped = provider().wrap(secrets.token_bytes(KEY_BYTES), kek_id=kek_id, context=_wrap_context(row))
    return row


def _unwrap(row: DataKey) -> bytes:
    name = (row.kek_id, row.id, row.org_id, row.purpose, row.version, bytes(row.wrapped))
    key = unwrapped.get(name)
    if key is None:
        check_kek(row.kek_id)
        key = provider().unwrap(bytes(row.wrapped), kek_id=row.kek_id, context=_wrap_context(row))
        unwrapped.put(name, key)
    return key


def _wrap_context(row: DataKey) -> bytes:
    return length_prefixed(
        "rensei.dek.v1", row.kek_id, row.org_id or "platform", row.purpose, str(row.id), str(row.version)
    )
