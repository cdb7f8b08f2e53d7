"""The ledger as CSV, written row by row."""

from collections.abc import Iterator
from datetime import UTC

from django.db.models import Q, QuerySet

from billing.models import CALL_COLUMNS, CostEvent
from rensei.core import csv_file, token_classes
from rensei.core.csv_file import cell
from rensei.core.money import dollars

PAGE = 1000
# The organization is the reader's own, and the signing credential is for operators only, so both are left out.
TEXTS = ("id", "kind", "adjusts_id", *(name for name in CALL_COLUMNS if name not in ("org_id", "credential_id")))
COUNTS = (*token_classes.COUNTS, "thinking_tokens")
HEADER = ("occurred_at", *TEXTS, *COUNTS, "amount_usd", "billed", "billed_usd", "estimated", "sandbox_seconds")


def write(events: QuerySet[CostEvent]) -> Iterator[str]:
    """Write the events as CSV, newest first, with one page of rows in memory at a time."""
    in_order = events.order_by("-occurred_at", "-id")
    return csv_file.write(HEADER, (map(_cells, page) for page in _pages(in_order)))


def _pages(events: QuerySet[CostEvent]) -> Iterator[list[CostEvent]]:
    """Each page begins after the last line of the previous one, so a slow client keeps no cursor open."""
    page = list(events[:PAGE])
    while page:
        yield page
        last = page[-1]
        # The first condition alone is a range of the index. The second excludes the lines already returned.
        earlier = events.filter(occurred_at__lte=last.occurred_at)
        page = list(earlier.filter(Q(occurred_at__lt=last.occurred_at) | Q(id__lt=last.id))[:PAGE])


def _cells(event: CostEvent) -> list[object]:
    return [
        event.occurred_at.astimezone(UTC).isoformat(),
        *(cell(getattr(event, name)) for name in TEXTS),
        *(getattr(event, name) for name in COUNTS),
        dollars(event.amount_picodollars) or "",
        event.billed,
        dollars(event.billed_picodollars),
        event.estimated,
        "" if event.sandbox_seconds is None else event.sandbox_seconds,
    ]
