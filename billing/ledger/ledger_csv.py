"""The ledger as CSV, written row by row."""

from collections.abc import Iterator
from datetime import UTC

from django.db.models import Q, QuerySet

from billing.models import CALL_COLUMNS, COUNT_COLUMNS, CostEvent
from rensei.core import csv_file
from rensei.core.csv_file import cell
from rensei.core.money import dollars

PAGE = 1000
# Which organization it is, the reader knows; which credential signed is for operators.
TEXTS = ("id", "kind", "adjusts_id", *(name for name in CALL_COLUMNS if name not in ("org_id", "credential_id")))
COUNTS = (*COUNT_COLUMNS, "thinking_tokens")
HEADER = ("occurred_at", *TEXTS, *COUNTS, "amount_usd", "billed", "billed_usd", "estimated")


def write(events: QuerySet[CostEvent]) -> Iterator[str]:
    """Write the events as CSV, newest first, one page of rows in memory at a time."""
    in_order = events.order_by("-occurred_at", "-id")
    return csv_file.write(HEADER, (map(_cells, page) for page in _pages(in_order)))


def _pages(events: QuerySet[CostEvent]) -> Iterator[list[CostEvent]]:
    """Each page begins after the last line of the one before, so no cursor stays open while a slow client reads."""
    page = list(events[:PAGE])
    while page:
        yield page
        last = page[-1]
        # The first condition alone is a range of the index; the second then leaves out what was given already.
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
    ]
