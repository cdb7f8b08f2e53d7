"""Reading the audit log: who did what to which object, newest first."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date

from django.db.models import Q, QuerySet, TextField
from django.db.models.functions import Cast

from rensei.audit.models import AuditEvent
from rensei.core import csv_file
from rensei.core.bounded_queries import bounded_search
from rensei.core.csv_file import cell
from rensei.core.errors import NotPermitted
from rensei.core.limits import limit
from rensei.core.periods import last_of, start_of
from rensei.core.querysets import pages
from rensei.orgs.access import Access

CSV_PAGE = 1000
CSV_HEADER = ("occurred_at", "actor", "token_id", "action", "object_id", "detail", "address")
CHOICES_MOST = limit(
    200, "values", what="Values that a filter of the audit log offers", told="the caller: others are found by a search"
)
WORDS_CHARACTERS = 200
WORDS_MAX = limit(
    8,
    "words, in 200 characters",
    what="Words of a search of the audit log",
    told="the caller: further ones narrow nothing; REST answers 400 `VALIDATION_FAILED` to a longer text",
)
MATCHES = limit(
    1_000,
    "events",
    what="Events of the audit log that a search for words finds, the newest that match",
    told="the caller: earlier ones are found with an earlier last day",
)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which events: each part that is given narrows the list. The days are UTC, both included."""

    actor: str = ""
    action: str = ""
    object_id: str = ""
    words: str = ""
    first_day: date | None = None
    last_day: date | None = None


ALL = Filter()


def events(access: Access, asked: Filter = ALL) -> QuerySet[AuditEvent]:
    """
    List the events of the caller's organization that match a filter, newest first.

    :raises NotPermitted: unless the caller is an owner, an admin or an auditor of the whole organization
    """
    require_reader(access)
    return narrow(AuditEvent.objects.for_org(access.org).order_by("-id"), asked)


def narrow(found: QuerySet[AuditEvent], asked: Filter) -> QuerySet[AuditEvent]:
    """
    Leave out the events that do not match a filter.

    :raises FieldError: if the search for its words takes too long
    """
    exact = {"actor": asked.actor, "action": asked.action, "object_id": asked.object_id}
    found = found.filter(**{name: value for name, value in exact.items() if value})
    if asked.first_day:
        found = found.filter(occurred_at__gte=start_of(asked.first_day))
    if asked.last_day:
        found = found.filter(occurred_at__lte=last_of(asked.last_day))
    words = asked.words[:WORDS_CHARACTERS].split()[:WORDS_MAX]
    return found.filter(pk__in=_matching(found, words)) if words else found


def _matching(found: QuerySet[AuditEvent], words: Sequence[str]) -> list[int]:
    """
    Find the newest events that hold all of some words, which no index helps with.

    :raises FieldError: if the search takes too long
    """
    # The names that people use for objects are in the detail.
    found = found.alias(detail_text=Cast("detail", TextField()))
    for word in words:
        found = found.filter(
            Q(actor__icontains=word)
            | Q(action__icontains=word)
            | Q(object_id__icontains=word)
            | Q(detail_text__icontains=word)
        )
    with bounded_search():
        return list(found.order_by("-pk").values_list("pk", flat=True)[:MATCHES])


def require_reader(access: Access) -> None:
    """:raises NotPermitted: unless the caller is an owner, an admin or an auditor of the whole organization"""
    if not access.sees_everyone or access.project is not None:
        raise NotPermitted


def actors(access: Access) -> list[str]:
    """List the actors of this organization's events."""
    return _distinct(access, "actor")


def actions(access: Access) -> list[str]:
    """List the actions that occur in this organization."""
    return _distinct(access, "action")


def write_csv(found: QuerySet[AuditEvent]) -> Iterator[str]:
    """Write events as CSV, newest first, one page of rows in memory at a time."""
    return csv_file.write(CSV_HEADER, (map(_cells, page) for page in pages(found, size=CSV_PAGE, by="-pk")))


def _distinct(access: Access, field: str) -> list[str]:
    found = AuditEvent.objects.for_org(access.org).order_by(field).values_list(field, flat=True).distinct()
    return list(found[:CHOICES_MOST])


def _cells(event: AuditEvent) -> list[object]:
    return [
        event.occurred_at.astimezone(UTC).isoformat(),
        cell(event.actor),
        event.token_id,
        event.action,
        cell(event.object_id),
        json.dumps(event.detail, ensure_ascii=False),
        event.address or "",
    ]
