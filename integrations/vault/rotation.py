"""
Re-wrapping of data keys by the current outer key, while everything runs.

The rows that are wrapped by another key or version are the work that is left, so a killed rotation resumes by starting
again. A row is written only if it is still what was read, after the new wrapping was unwrapped again.
"""

import hmac
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from django.conf import settings
from django.db import connection
from django.db.models import Count, Model, Q, QuerySet

from integrations.models import DataKey, KeyCheck
from integrations.vault import data_keys, kek_providers, keyring
from integrations.vault.errors import KekUnavailable, KeyServiceSilent, VaultFault, WrapInvalid
from rensei.audit.record import record_operator, record_system
from rensei.core.clock import database_now
from rensei.core.transactions import durable
from rensei.orgs.models import User

Row = TypeVar("Row", bound=Model)

BATCH = 200
# A data key that was being wrapped when the last one left an outer key is stored within this time.
IN_USE_FOR = timedelta(hours=1)
# Calls to a key service at the same time. The keyring is no call.
AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Batch:
    """
    A part of a rotation. `failed` names what could not be done, and why; it is the last one if nothing is left.

    `position` is where the next one begins.
    """

    done: int
    failed: dict[str, str]
    is_last: bool
    position: str = ""


@dataclass(frozen=True, kw_only=True)
class Holding:
    """How many data keys a version of an outer key wraps."""

    kek_id: str
    version: str
    count: int


def holdings() -> list[Holding]:
    """List what wraps the data keys, the outer keys that wrap none included."""
    rows = DataKey.objects.order_by("kek_id", "kek_version").values("kek_id", "kek_version").annotate(count=Count("id"))
    found = [Holding(kek_id=row["kek_id"], version=row["kek_version"], count=row["count"]) for row in rows]
    empty = KeyCheck.objects.exclude(kek_id__in={one.kek_id for one in found}).values_list("kek_id", flat=True)
    return [*found, *(Holding(kek_id=kek_id, version="", count=0) for kek_id in empty.order_by("kek_id"))]


def outdated() -> "QuerySet[DataKey]":
    """
    Find the data keys that the current outer key, or its current version, does not wrap.

    :raises VaultFault: if the current outer key is not available
    """
    provider = kek_providers.current()
    return DataKey.objects.exclude(Q(kek_id=provider.current_id()) & Q(kek_version=provider.current_version()))


def renew_check() -> None:
    """
    Check the current outer key, and make its check value by its current version: older ones may be retired.

    :raises VaultFault: if the current outer key is not available
    """
    provider = kek_providers.current()
    kek_id = provider.current_id()
    data_keys.note_first_use(kek_id)
    if provider.current_version():
        KeyCheck.objects.filter(pk=kek_id).update(value=provider.check_value(kek_id), emptied_at=None)
    else:
        KeyCheck.objects.filter(pk=kek_id).update(emptied_at=None)


def rewrap_batch(after: str = "", skipped: Collection[str] = ()) -> Batch:
    """
    Re-wrap some of the data keys that need it, and then those before the position.

    New data keys may be made meanwhile, by processes that still have another current key; they are found as well.

    :param after: the id of the last one of the batch before
    :param skipped: the ids of those that could not be re-wrapped before
    :raises KeyServiceSilent: if a key service does not answer; nothing of the batch is written
    :raises VaultFault: if the current outer key is not available
    """
    rows = next_rows(outdated().exclude(pk__in=list(skipped)), after)
    if not rows:
        return Batch(done=0, failed={}, is_last=True, position=after)
    count, failed = _rewrap(rows)
    return Batch(done=count, failed=failed, is_last=False, position=str(rows[-1].pk))


def next_rows(left: "QuerySet[Row]", after: str) -> "list[Row]":
    """Read a batch of rows that are left: those after a position, and when there are none, from the first one on."""
    ordered = left.order_by("pk")
    return (list(ordered.filter(pk__gt=after)[:BATCH]) if after else []) or list(ordered[:BATCH])


def verify_batch(after: str) -> Batch:
    """
    Unwrap some data keys, past the cache.

    :param after: the id of the last one of the batch before
    :raises KeyServiceSilent: if a key service does not answer, which says nothing about the keys
    """
    rows = list(_after(after).order_by("pk")[:BATCH])
    failed = {}
    for row in rows:
        try:
            data_keys.unwrap(row)
        except KeyServiceSilent:
            raise
        except VaultFault as fault:
            failed[str(row.pk)] = str(fault)
    position = str(rows[-1].pk) if rows else after
    return Batch(done=len(rows) - len(failed), failed=failed, is_last=len(rows) < BATCH, position=position)


def count_after(after: str) -> int:
    """Count the data keys that come after one in a verification."""
    return _after(after).count()


def _after(after: str) -> "QuerySet[DataKey]":
    return DataKey.objects.filter(pk__gt=after) if after else DataKey.objects.all()


class KekInUse(Exception):
    """The outer key still wraps data keys, or is the current one."""


def require_unused(kek_id: str) -> None:
    """:raises KekInUse: if a data key needs the outer key, or the next one will, or one may that is being made now"""
    if kek_providers.current().current_id() == kek_id:
        raise KekInUse(f"{kek_id} is the current key: new data keys will need it.")
    count = DataKey.objects.filter(kek_id=kek_id).count()
    if count:
        raise KekInUse(f"{count} data key(s) need {kek_id}. Run `vault rotate` first.")
    emptied_at = KeyCheck.objects.filter(pk=kek_id).values_list("emptied_at", flat=True).first()
    if emptied_at is None:
        raise KekInUse(f"It is not noted yet since when no data key needs {kek_id}. Run `vault rotate`.")
    if database_now() < emptied_at + IN_USE_FOR:
        until = emptied_at + IN_USE_FOR
        raise KekInUse(f"A process may be wrapping by {kek_id} still. Try again after {until:%Y-%m-%d %H:%M} UTC.")


@dataclass(frozen=True, kw_only=True)
class Backups:
    """Which backups of the database need an outer key: those made before a time, and when the last one is deleted."""

    made_before: datetime | None
    kept_until: datetime | None

    def __str__(self) -> str:
        before = f"{self.made_before:%Y-%m-%d %H:%M} UTC" if self.made_before else "the last rotation"
        until = (
            f"The last of them is kept until {self.kept_until:%Y-%m-%d %H:%M} UTC."
            if self.kept_until
            else "How long they are kept is not known here: set RENSEI_BACKUPS_KEPT_DAYS."
        )
        return f"Backups of the database from before {before} need it. {until}"


def backups_needing(check: KeyCheck) -> Backups:
    """State which backups need an outer key that no data key needs."""
    days = settings.RENSEI_BACKUPS_KEPT_DAYS
    until = check.emptied_at + timedelta(days=days) if check.emptied_at and days is not None else None
    return Backups(made_before=check.emptied_at, kept_until=until)


def retire(check: KeyCheck, *, actor: User | str) -> None:
    """
    Forget an outer key, and remove it from the keyring, for good. One in a key service is destroyed there.

    It is recorded before, since it cannot be undone, and another event follows where it is kept after all. Once it is
    retired, no machine begins to use the key.

    :param actor: the operator, or the name of the command
    :raises KekInUse: if a data key needs it, or the next one will
    :raises KekUnavailable: if it is in the keyring, and that cannot be changed
    """
    require_unused(check.kek_id)
    _record(actor, data_keys.RETIRED, check)
    try:
        require_unused(check.kek_id)
        path = next(kek_providers.keyring_paths(), None)
        if check.kek_id.startswith(keyring.ID_PREFIX) and path is not None:
            ring = keyring.load(path)
            if check.kek_id != ring.current:
                keyring.remove_key(path, check.kek_id)
    except (KekInUse, VaultFault):
        _record(actor, "vault.outer_key_kept", check)
        raise
    check.delete()


def _record(actor: User | str, action: str, check: KeyCheck) -> None:
    name = data_keys.audited_name(check.kek_id)
    with durable():
        if isinstance(actor, User):
            record_operator(actor, action, object_id=name)
        else:
            record_system(actor, action, object_id=name)


def note_emptied() -> None:
    """Note when the last data key left an outer key: an older backup of the database still needs it."""
    used = DataKey.objects.order_by().values("kek_id").distinct()
    KeyCheck.objects.filter(emptied_at__isnull=False, kek_id__in=used).update(emptied_at=None)
    KeyCheck.objects.filter(emptied_at=None).exclude(kek_id__in=used).update(emptied_at=database_now())


def _rewrap(rows: list[DataKey]) -> tuple[int, dict[str, str]]:
    """
    Re-wrap some rows, with no transaction open, and write them in one. Returns how many, and which could not be.

    :raises KeyServiceSilent: if a key service does not answer; nothing of the batch is written
    """
    is_remote = any(provider.is_remote for provider in kek_providers.configured())
    results: list[DataKey | VaultFault]
    if is_remote:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="rewrap") as pool:
            results = list(pool.map(_rewrapped_in_thread, rows))
    else:
        results = [_rewrapped(row) for row in rows]
    new: dict[object, DataKey] = {}
    failed: dict[str, str] = {}
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, KeyServiceSilent):
            raise result
        if isinstance(result, VaultFault):
            failed[str(row.pk)] = str(result)
        else:
            new[row.pk] = result
    done, now = 0, database_now()
    with durable():
        # Backups of the database need an outer key until the last data key has left it, which is noted anew.
        KeyCheck.objects.filter(pk__in={row.kek_id for row in rows}).update(emptied_at=None)
        for row in rows:
            if row.pk in new:
                made = new[row.pk]
                same = DataKey.objects.filter(pk=row.pk, wrapped=bytes(row.wrapped))
                done += same.update(
                    kek_id=made.kek_id, kek_version=made.kek_version, wrapped=made.wrapped, rewrapped_at=now
                )
    return done, failed


def _rewrapped_in_thread(row: DataKey) -> DataKey | VaultFault:
    try:
        return _rewrapped(row)
    finally:
        connection.close()


def _rewrapped(row: DataKey) -> DataKey | VaultFault:
    try:
        key = data_keys.unwrap(row)
        new = copy(row)
        data_keys.wrap(new, key)
        if not hmac.compare_digest(data_keys.unwrap(new), key):
            return WrapInvalid("the new wrapping does not unwrap")
        if (new.kek_id, new.kek_version) == (row.kek_id, row.kek_version):
            return KekUnavailable("the provider has wrapped it by the same version again")
    except VaultFault as fault:
        return fault
    return new
