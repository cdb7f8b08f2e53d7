"""
How many bytes each organization stores, and the limit that operators set.

One row counts for an organization: `used` is what it stores, `held` what its runs under way may still write. Both are
changed in the transaction that writes what they count, so they stay consistent if a process dies. One conditional
UPDATE admits a write that needs space; ending and deleting are never refused. `reconcile` compares the
rows with what is stored.

Lock order, so that no two transactions deadlock: this row before those of budgets and quotas, and the rows
of several organizations in the order of their ids.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from django.conf import settings
from django.db import connection
from django.db.models import BigIntegerField, F, Value
from django.db.models.functions import Cast, Coalesce

from rensei.core import jobs
from rensei.core.errors import RenseiError, Said
from rensei.core.limits import MIB
from rensei.core.transactions import assert_open, durable, snapshot
from rensei.core.unknown import note_unknown
from rensei.orgs.models import Org, StoredBytes

# About what the row of a run takes besides its texts, with its attempt, its ledger line and their indexes.
ROW_BYTES = 2048

# What one kind of rows stores by organization: the bytes used and the bytes held.
Sums = Callable[[], Mapping[str, tuple[int, int]]]

logger = structlog.get_logger(__name__)


class StorageLimitReached(RenseiError):
    """The organization stores as many bytes as the operators allow."""

    code = "STORAGE_LIMIT_REACHED"
    status = 403
    title = "Storage limit reached"
    message = Said(
        (
            "The organization stores {used} MiB and its runs under way may write {held} MiB more, of the "
            "{limit} MiB that it may store."
        ),
        ("Delete workflows or long profiles that are not needed, or ask your Rensei operator for a higher limit."),
    )


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What an organization stores, what its runs under way may still write, and what it may store, in bytes."""

    used: int
    held: int
    limit: int

    def require_room(self, size: int = 0) -> None:
        """
        Check the values as read, for a preview and for calls that store a row each. `take` checks what is written.

        :raises StorageLimitReached: if no space is left, or less than the size of what is to be stored
        """
        if self.used + self.held + max(1, size) > self.limit:
            raise self.refusal()

    def refusal(self) -> StorageLimitReached:
        return StorageLimitReached(
            used=self.used // MIB,
            held=-(-self.held // MIB),
            limit=self.limit // MIB,
            extra={"usedBytes": self.used, "heldBytes": self.held, "limitBytes": self.limit},
        )


def take(org_id: str, *, stored: int, held: int = 0) -> None:
    """
    Count what the caller's transaction is about to write, if there is space for it.

    :raises StorageLimitReached: if there is not; then nothing is counted
    """
    assert_open()
    if not (_take(org_id, stored, held) or (_make_row(org_id) and _take(org_id, stored, held))):
        raise read(org_id).refusal()


def change(changes: Mapping[str, tuple[int, int]]) -> None:
    """
    Count by organization what the caller's transaction has stored and held, or has released.

    It was admitted before, or frees space, so it is not refused.
    """
    assert_open()
    rows = [(used, held, org_id) for org_id, (used, held) in sorted(changes.items()) if used or held]
    if not rows:
        return
    if _change(rows) < len(rows):
        _change([row for row in rows if _make_row(row[2])])


def read(org_id: str) -> Storage:
    return storage_of(StoredBytes.objects.filter(org_id=org_id).first())


def storage_of(row: StoredBytes | None) -> Storage:
    """Read an organization's row. An organization that has stored nothing yet may have none."""
    if row is None:
        return Storage(used=0, held=0, limit=settings.RENSEI_ORG_STORAGE_MIB * MIB)
    limit = settings.RENSEI_ORG_STORAGE_MIB if row.limit_mib is None else row.limit_mib
    return Storage(used=row.used, held=row.held, limit=limit * MIB)


def size_of(*values: Any) -> int:
    """Count the bytes of texts, and of other values as JSON."""
    return sum(_size(value) for value in values)


def reconcile(sources: Iterable[Sums]) -> dict[str, tuple[int, int]]:
    """
    Compare the counts with what is stored, log each difference, and correct it.

    All is read as of one moment. A difference is added to the row rather than written over it, because other
    transactions that changed it since have counted their writes. Returns the differences by organization.
    """
    with snapshot():
        counted = {
            org_id: (used, held) for org_id, used, held in StoredBytes.objects.values_list("org", "used", "held")
        }
        stored: dict[str, tuple[int, int]] = {}
        for source in sources:
            for org_id, (used, held) in source().items():
                before = stored.get(org_id, (0, 0))
                stored[org_id] = before[0] + used, before[1] + held
    differences = {}

    def correct(org_id: str) -> None:
        is_now, was = stored.get(org_id, (0, 0)), counted.get(org_id, (0, 0))
        if is_now == was:
            return
        used, held = is_now[0] - was[0], is_now[1] - was[1]
        logger.warning("stored_bytes_differ", org_id=org_id, used=used, held=held)
        note_unknown("stored_bytes", org_id)
        with durable():
            change({org_id: (used, held)})
        differences[org_id] = used, held

    jobs.for_each(sorted(counted.keys() | stored.keys()), correct, job="count-stored-bytes")
    return differences


def _take(org_id: str, stored: int, held: int) -> bool:
    limit = Cast(Coalesce(F("limit_mib"), Value(settings.RENSEI_ORG_STORAGE_MIB)), BigIntegerField()) * MIB
    row = StoredBytes.objects.filter(org_id=org_id, used__lte=limit - F("held") - (stored + held))
    return bool(row.update(used=F("used") + stored, held=F("held") + held))


def _change(rows: Sequence[tuple[int, int, str]]) -> int:
    """Change rows, and return how many of them existed."""
    with connection.cursor() as cursor:
        if len(rows) == 1:
            cursor.execute(_CHANGE, rows[0])
        else:
            # One round trip to the server for all of them.
            cursor.executemany(_CHANGE, rows)
        return int(cursor.rowcount)


def _make_row(org_id: str) -> bool:
    """Create the row of an organization, and return whether it had none."""
    if StoredBytes.objects.filter(org_id=org_id).exists() or not Org.objects.filter(id=org_id).exists():
        return False
    StoredBytes.objects.bulk_create([StoredBytes(org_id=org_id)], ignore_conflicts=True)
    return True


_CHANGE = "UPDATE orgs_storedbytes SET used = used + %s, held = held + %s WHERE org_id = %s"


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode(errors="surrogatepass"))
    if value is None:
        return 0
    try:
        return len(orjson.dumps(value))
    except TypeError:
        # An integer of more than 64 bits, or half of a surrogate pair.
        return len(json.dumps(value))
