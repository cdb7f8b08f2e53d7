"""The audit log: who did what to which object, for owners, admins and auditors."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from django.db.models import F, QuerySet, Value
from django.http import HttpResponse, QueryDict, StreamingHttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from profiles.services import visible_profiles
from rensei.audit.models import AuditEvent
from rensei.console.access import PageRequest, page
from rensei.core import csv_file
from rensei.dispatch.queries import visible_runs
from rensei.orgs import audit_log
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.audit_log import Filter
from rensei.workflows.services import visible_workflow_runs, visible_workflows

PAGE_SIZE = 50
FILTERS = ("q", "actor", "action", "object", "from", "to")


@require_safe
@page
def events(request: PageRequest) -> HttpResponse:
    """List the events that match the filters, newest first."""
    query = request.GET
    found = audit_log.events(request.access, _filter_of(query))
    before = query.get("before", "")
    if before.isascii() and before.isdecimal() and len(before) < 19:
        found = found.filter(id__lt=int(before))
    rows = list(found[: PAGE_SIZE + 1])
    context = {
        "events": rows[:PAGE_SIZE],
        "present": _present(request.access, rows[:PAGE_SIZE]),
        "older": rows[PAGE_SIZE - 1].pk if len(rows) > PAGE_SIZE else None,
        "is_first": not before,
        "query": query,
        "first_day": query.get("from", ""),
        "filtered": any(query.get(name) for name in FILTERS),
        "kept": _without_cursor(query),
        "actors": audit_log.actors(request.access),
        "actions": audit_log.actions(request.access),
    }
    return render(request, "console/audit_log.html", context)


@require_safe
@page
def events_csv(request: PageRequest) -> StreamingHttpResponse:
    """Stream the same events as CSV, row by row."""
    parts = audit_log.write_csv(audit_log.events(request.access, _filter_of(request.GET)))
    return csv_file.answer(request, parts, filename=f"{request.access.org.slug}-audit-log.csv")


def _present(access: Access, events: Sequence[AuditEvent]) -> set[tuple[str, str]]:
    """Return which objects of the events exist, in one query: the name of each one's page, and its id."""
    ids = {event.object_id for event in events}
    kinds: list[tuple[str, QuerySet[Any], str]] = [
        ("run", visible_runs(access), "pk"),
        ("profile", visible_profiles(access), "public_id"),
        ("project-access", orgs.visible_projects(access), "slug"),
        ("workflow", visible_workflows(access), "pk"),
        ("workflow-run", visible_workflow_runs(access), "pk"),
    ]
    first, *others = (
        rows.filter(**{f"{key}__in": ids})
        .order_by()
        .annotate(page=Value(page), named=F(key))
        .values_list("page", "named")
        for page, rows, key in kinds
    )
    return set(first.union(*others))


def _filter_of(query: QueryDict) -> Filter:
    # PostgreSQL stores no text with U+0000, so nothing can match it.
    said = {name: query.get(name, "").replace("\0", "").strip() for name in FILTERS}
    return Filter(
        actor=said["actor"],
        action=said["action"],
        object_id=said["object"],
        words=said["q"],
        first_day=_day(said["from"]),
        last_day=_day(said["to"]),
    )


def _day(text: str) -> date | None:
    """Parse a day as a date field sends it. None for another text, which filters nothing."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _without_cursor(query: QueryDict) -> str:
    kept = query.copy()
    kept.pop("before", None)
    return kept.urlencode()
