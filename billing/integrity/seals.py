"""
Seals chain the committed lines of each organization, and all audit events, so that a changed row is detected.

A chain follows the order of sealing, not of ids: a row may be committed late with an early id.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import groupby
from typing import Any

from django.db.models import Exists, OuterRef

from billing.integrity.chains import RECORDS, Record
from billing.integrity.digests import START
from rensei.core import jobs
from rensei.core.clock import database_now
from rensei.core.querysets import readable
from rensei.core.transactions import durable

JOB = "seal-ledger"
# The condition, for a periodic job, that any row has no seal yet.
ANY_WAITING = " OR ".join(f"EXISTS (SELECT 1 FROM {record.waiting._meta.db_table})" for record in RECORDS)  # noqa: S608, SLF001
BATCH = 500
# Bounds one run, also after an update that seals a whole ledger. The next run continues.
BATCHES_IN_A_TURN = 10


def seal() -> None:
    """Seal the rows without a seal, each batch in its own transaction."""
    for record in RECORDS:
        for _ in range(BATCHES_IN_A_TURN):
            if not record.waiting.objects.exists() or _seal_batch(record) < BATCH:
                break


def _seal_batch(record: Record) -> int:
    """
    Seal the next rows, and return how many were without a seal.

    Two concurrent sealers would write the same places. The unique constraint rejects the second.
    """
    rows, seals, waits = (model.objects for model in (record.rows, record.seals, record.waiting))
    with durable():
        waiting = waits.filter(Exists(rows.filter(id=OuterRef("event_id")))).order_by("event_id")
        event_ids = list(waiting.values_list("event_id", flat=True)[:BATCH])
        # An id that already has a seal belongs to a row that was deleted and written again.
        sealed = set(seals.filter(event_id__in=event_ids).values_list("event_id", flat=True))
        in_order = ("org_id", "id") if record.by_org else ("id",)
        # A row that cannot be read stays on the list, and the others are sealed.
        unsealed = rows.filter(id__in=set(event_ids) - sealed).order_by(*in_order)
        found = readable(unsealed, skip=lambda event_id, _: jobs.report_row(str(event_id), job=JOB))
        now = database_now()
        new: list[Any] = []
        for org_id, of_chain in groupby(found, key=record.chain_of):
            new.extend(_continue_chain(record, org_id, of_chain, now=now))
        seals.bulk_create(new)
        waits.filter(event_id__in=sealed.union(each.event_id for each in new)).delete()
        return len(event_ids)


def _continue_chain(record: Record, org_id: str | None, rows: Iterable[Any], *, now: datetime) -> Iterator[Any]:
    last = record.chain(org_id).order_by("-seq").values_list("seq", "digest").first()
    seq, previous = last or (0, START)
    chain = {"org_id": org_id} if record.by_org else {}
    for row in rows:
        try:
            found = record.digest(row, seq=seq + 1, previous=previous)
        except (AttributeError, TypeError, ValueError):
            jobs.report_row(str(row.pk), job=JOB)
            continue
        seq, previous = seq + 1, found
        yield record.seals(**chain, seq=seq, event_id=row.pk, digest=previous, sealed_at=now)
