"""
Seals chain the committed lines of each organization, so that a changed line no longer fits.

A chain follows the order of sealing and not that of ids: a line may be committed late under an early id.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby

from django.db.models import Exists, OuterRef, QuerySet

from billing.models import CostEvent, LedgerSeal, LineToSeal
from rensei.core import jobs
from rensei.core.clock import database_now
from rensei.core.transactions import durable

JOB = "seal-ledger"
# What comes before the first seal of a chain.
START = ""
BATCH = 500
# A turn ends soon, also after an update that seals a whole ledger: the next one goes on.
BATCHES_IN_A_TURN = 10
# Everything that a line says, spelt out: it is a format, and must not change with another list. A field that is null is
# left out, so a column that is added later, null for the lines before it, leaves their digests as they are.
SEALED = (
    "id",
    "org_id",
    "kind",
    "adjusts_id",
    "run_id",
    "attempt_id",
    "profile_id",
    "project_id",
    "auth_mode",
    "payer",
    "billing_class",
    "pool_id",
    "credential_id",
    "provider",
    "model_id",
    "served_model_id",
    "provider_request_id",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "web_search_requests",
    "thinking_tokens",
    "input_picodollars",
    "output_picodollars",
    "cache_read_picodollars",
    "cache_write_5m_picodollars",
    "cache_write_1h_picodollars",
    "web_search_picodollars",
    "amount_picodollars",
    "billed",
    "billed_picodollars",
    "estimated",
    "occurred_at",
)


def seal() -> None:
    """Seal the lines that wait, each batch in a transaction of its own."""
    for _ in range(BATCHES_IN_A_TURN):
        if not LineToSeal.objects.exists() or _seal_batch() < BATCH:
            return


def digest(line: CostEvent, *, seq: int, previous: str) -> str:
    """Make the digest of a line at its place in the chain, from a text that is the same on every database."""
    content = {name: value for name in SEALED if (value := getattr(line, name)) is not None}
    content["occurred_at"] = line.occurred_at.astimezone(UTC).isoformat(timespec="microseconds")
    text = json.dumps([previous, line.org_id, seq, content], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _seal_batch() -> int:
    """
    Seal the next lines, and tell how many waited.

    Two sealers at once would write the same places, which a unique constraint refuses to the second.
    """
    with durable():
        is_there = Exists(CostEvent.objects.filter(id=OuterRef("event_id")))
        waiting = LineToSeal.objects.filter(is_there).order_by("event_id")
        event_ids = list(waiting.values_list("event_id", flat=True)[:BATCH])
        # An id that has its seal already is that of a line which somebody took away and wrote anew.
        sealed = set(LedgerSeal.objects.filter(event_id__in=event_ids).values_list("event_id", flat=True))
        lines = _load(CostEvent.objects.filter(id__in=set(event_ids) - sealed).order_by("org_id", "id"))
        now = database_now()
        seals: list[LedgerSeal] = []
        for org_id, of_org in groupby(lines, key=lambda line: line.org_id):
            seals.extend(_continue_chain(org_id, of_org, now=now))
        LedgerSeal.objects.bulk_create(seals)
        done = sealed.union(line.event_id for line in seals)
        LineToSeal.objects.filter(event_id__in=done).delete()
        return len(event_ids)


def _load(found: QuerySet[CostEvent]) -> list[CostEvent]:
    """Load lines. One that cannot be read is reported, stays on the list, and leaves the others to be sealed."""
    try:
        return list(found)
    except (ArithmeticError, TypeError, ValueError):
        lines: list[CostEvent] = []
        event_ids = list(found.values_list("id", flat=True))
        jobs.for_each(event_ids, lambda event_id: lines.append(found.get(id=event_id)), job=JOB)
        return lines


def _continue_chain(org_id: str, lines: Iterable[CostEvent], *, now: datetime) -> Iterator[LedgerSeal]:
    chain = LedgerSeal.objects.filter(org_id=org_id).order_by("-seq")
    seq, previous = chain.values_list("seq", "digest").first() or (0, START)
    for line in lines:
        try:
            found = digest(line, seq=seq + 1, previous=previous)
        except (AttributeError, TypeError, ValueError):
            jobs.report_row(line.pk, job=JOB)
            continue
        seq, previous = seq + 1, found
        yield LedgerSeal(org_id=org_id, seq=seq, event_id=line.id, digest=previous, sealed_at=now)
