"""The ledger as CSV, written row by row, so that a million lines take no more memory than one page of them."""

import csv
from collections.abc import AsyncIterator, Iterator
from datetime import UTC

from asgiref.sync import sync_to_async
from django.db.models import QuerySet

from billing.models import CostEvent
from rensei.core.money import dollars

PAGE = 1000
TEXTS = (
    "id",
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
    "provider",
    "model_id",
    "served_model_id",
    "provider_request_id",
)
COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "thinking_tokens",
    "web_search_requests",
)
HEADER = ("occurred_at", *TEXTS, *COUNTS, "amount_usd", "billed", "billed_usd", "estimated")
# A spreadsheet takes a cell that begins with one of these for a formula:
# https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class _Line:
    """What `csv.writer` writes to: it hands the finished line back."""

    def write(self, text: str) -> str:
        return text


def write(events: QuerySet[CostEvent]) -> Iterator[str]:
    """Write the events as CSV, newest first, one page of rows in memory at a time."""
    writer = csv.writer(_Line())
    yield writer.writerow(HEADER)
    for page in _pages(events.order_by("-id")):
        yield "".join(writer.writerow(_cells(event)) for event in page)


async def write_async(events: QuerySet[CostEvent]) -> AsyncIterator[str]:
    """Do the same for an ASGI response, which would read a plain iterator to its end before it sends a byte."""
    parts = write(events)
    while (part := await sync_to_async(lambda: next(parts, None))()) is not None:
        yield part


def cell(value: str | None) -> str:
    """Write a text so that a spreadsheet takes it for nothing else."""
    return f"'{value}" if value and value.startswith(FORMULA) else value or ""


def _pages(events: QuerySet[CostEvent]) -> Iterator[list[CostEvent]]:
    """Each page begins after the last id of the one before, so no cursor stays open while a slow client reads."""
    page = list(events[:PAGE])
    while page:
        yield page
        page = list(events.filter(id__lt=page[-1].id)[:PAGE])


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
