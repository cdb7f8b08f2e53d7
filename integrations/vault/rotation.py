"""
Re-wrapping of data keys by the current outer key, while everything runs.

The rows that are wrapped by another key or version are the work that is left, so a killed rotation resumes by starting
again. A row is written only if it is still what was read, after the new wrapping was unwrapped again.
"""

import hmac
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from itertools import chain

from django.db import connection
from django.db.models import Count, Q, QuerySet

from integrations.models import DataKey, KeyCheck
from integrations.vault import data_keys, kek_providers
from integrations.vault.errors import KekUnavailable, KeyServiceSilent, VaultFault, WrapInvalid
from integrations.vault.key_services.circuit import OPEN_SECONDS
from rensei.core.clock import database_now
from rensei.core.querysets import pages
from rensei.core.transactions import durable, leave_database

BATCH = 200
# Calls to a key service at the same time. The keyring is no call.
AT_ONCE = 8
# After so many data keys that cannot be re-wrapped, the cause is not theirs.
FAILED_MAX = 500


@dataclass(kw_only=True)
class Progress:
    """What a rotation has done. `failed` names the data keys that could not be re-wrapped, and why."""

    rewrapped: int = 0
    left: int = 0
    began: float = field(default_factory=time.monotonic)
    failed: dict[str, str] = field(default_factory=dict)
    is_waiting: bool = False

    @property
    def rate(self) -> float:
        """Data keys re-wrapped in a second."""
        return self.rewrapped / max(time.monotonic() - self.began, 1e-6)


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


def rewrap(*, tell: Callable[[Progress], object] = lambda progress: None) -> Progress:
    """
    Re-wrap every data key that needs it. While the key service does not answer, it waits and goes on.

    New data keys may be made meanwhile, by processes that still have another current key; they are found as well.

    :raises VaultFault: if the current outer key is not available at the start
    """
    _renew_check()
    progress = Progress(left=outdated().count())
    tell(progress)
    while len(progress.failed) < FAILED_MAX:
        try:
            progress.is_waiting = False
            rows = list(outdated().exclude(pk__in=list(progress.failed)).order_by("pk")[:BATCH])
            if not rows:
                break
            progress.rewrapped += _rewrap_batch(rows, progress)
            progress.left = outdated().count()
        except KeyServiceSilent:
            progress.is_waiting = True
        tell(progress)
        if progress.is_waiting:
            leave_database()
            time.sleep(OPEN_SECONDS)
    _note_emptied()
    return progress


def verify(*, tell: Callable[[int], object] = lambda count: None) -> dict[str, str]:
    """
    Unwrap every data key, past the cache. Returns those that do not unwrap, and why.

    :raises KeyServiceSilent: if a key service does not answer, which says nothing about the keys
    """
    failed: dict[str, str] = {}
    for count, row in enumerate(chain.from_iterable(pages(DataKey.objects.all(), size=BATCH)), start=1):
        try:
            data_keys.unwrap(row)
        except KeyServiceSilent:
            raise
        except VaultFault as fault:
            failed[str(row.pk)] = str(fault)
        if count % BATCH == 0:
            tell(count)
    return failed


class KekInUse(Exception):
    """The outer key still wraps data keys, or is the current one."""


def require_unused(kek_id: str) -> None:
    """:raises KekInUse: if a data key needs the outer key, or the next one will"""
    if kek_providers.current().current_id() == kek_id:
        raise KekInUse(f"{kek_id} is the current key: new data keys will need it.")
    count = DataKey.objects.filter(kek_id=kek_id).count()
    if count:
        raise KekInUse(f"{count} data key(s) need {kek_id}. Run `vault rotate` first.")


def _rewrap_batch(rows: list[DataKey], progress: Progress) -> int:
    """
    Re-wrap some rows, with no transaction open, and write them in one.

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
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, KeyServiceSilent):
            raise result
        if isinstance(result, VaultFault):
            progress.failed[str(row.pk)] = str(result)
        else:
            new[row.pk] = result
    with durable():
        stored = (
            DataKey.objects.select_for_update().filter(pk__in=list(new)).order_by("pk").values_list("pk", "wrapped")
        )
        before = {row.pk: bytes(row.wrapped) for row in rows}
        unchanged = [new[pk] for pk, wrapped in stored if bytes(wrapped) == before[pk]]
        # Backups of the database need an outer key until the last data key has left it, which is noted anew.
        KeyCheck.objects.filter(pk__in={row.kek_id for row in rows}).update(emptied_at=None)
        return DataKey.objects.bulk_update(unchanged, ["kek_id", "kek_version", "wrapped"])


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


def _renew_check() -> None:
    """Check the current outer key, and make its check value by its current version: older ones may be retired."""
    provider = kek_providers.current()
    kek_id = provider.current_id()
    data_keys.note_first_use(kek_id)
    if provider.current_version():
        KeyCheck.objects.filter(pk=kek_id).update(value=provider.check_value(kek_id), emptied_at=None)
    else:
        KeyCheck.objects.filter(pk=kek_id).update(emptied_at=None)


def _note_emptied() -> None:
    """Note when the last data key left an outer key: an older backup of the database still needs it."""
    used = DataKey.objects.order_by().values("kek_id").distinct()
    KeyCheck.objects.filter(emptied_at=None).exclude(kek_id__in=used).update(emptied_at=database_now())
