"""Runs: the list with its filters, and one run with its decision, updated until it ends."""

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

from django.http import HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from billing.models import CostEvent
from integrations.providers.base import ADAPTERS
from rensei.console import usage_lines
from rensei.console.access import PageRequest, attempt, page, say_refusal
from rensei.core import periods
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import NotFound, RenseiError
from rensei.core.ids import first_id_of
from rensei.core.usage import Usage
from rensei.dispatch import services
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.repeating import repeatable, repeated_request
from rensei.dispatch.models import Run, RunChunk, RunQuerySet
from rensei.orgs import services as orgs
from rensei.orgs.models import Org
from rensei.workflows.models import NodeRun

PAGE_SIZE = 25
PERIODS = {"1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30)}
PERIOD_LABELS = {"1h": "Last hour", "24h": "Last 24 hours", "7d": "Last 7 days", "30d": "Last 30 days"}


@require_safe
@page
def runs(request: PageRequest) -> HttpResponse:
    """List the runs, newest first. A complete id in the search redirects to its run."""
    org, query = request.access.org, request.GET
    wanted = query.get("q", "").strip().lower()
    found = _filtered(Run.objects.for_org(org), query, wanted)
    if wanted.startswith("run_") and len(alike := found.values_list("id", flat=True)[:2]) == 1:
        return redirect("console:run", org.slug, alike[0])
    rows, older, newer = _window(found, before=query.get("before"), after=query.get("after"))
    context = {
        "runs": rows,
        "older": older,
        "newer": newer,
        "query": query,
        "day": _day(query),
        "filtered": any(query.get(name) for name in ("q", "state", "mode", "profile", "project", "day", "since")),
        "base_query": _without_cursor(query),
        "states": Run.State.choices,
        "modes": [mode.value for mode in AuthMode],
        "periods": PERIOD_LABELS.items(),
        "projects": orgs.visible_projects(request.access).order_by("name"),
        "profile_ids": _profile_ids(org),
    }
    return render(request, "console/runs.html", context)


@require_safe
@page
def run(request: PageRequest, run_id: str) -> HttpResponse:
    """Show one run; htmx requests only its changing part until it ends."""
    found = (
        Run.objects.for_org(request.access.org).select_related("created_by", "project", "host").get_or_404(pk=run_id)
    )
    ended = found.state in Run.ENDED
    text = text_of(found)
    usage = found.usage if ended else live_usage(found, text).as_dict()
    events = CostEvent.objects.for_org(request.access.org).filter(run_id=found.id).order_by("id")
    charges = list(events) if ended else []
    lines = usage_lines.of_ledger(charges) if ended else usage_lines.so_far(found, Usage.from_dict(usage))
    known = [line.amount for line in lines if line.amount is not None]
    context = {
        "run": found,
        "attempts": list(found.attempts.order_by("number")),
        "ended": ended,
        "text": text,
        "usage": usage,
        "now": database_now(),
        "lines": lines,
        "amount": found.amount_picodollars if ended else sum(known) if len(known) == len(lines) else None,
        "charges": charges,
        "several_models": len({line.model for line in lines}) > 1,
        "repeatable": repeatable(Run.objects.filter(pk=found.pk)).exists(),
        "node": _node_of(found),
        "before": request.GET.get("before", ""),
    }
    if request.htmx:
        return render(request, "console/_run.html", context)
    asked = getattr(found, "input", None)
    context["asked"] = asked_of(asked.body) if asked else []
    return render(request, "console/run.html", context)


@require_POST
@page
def again(request: PageRequest, run_id: str) -> HttpResponse:
    """Dispatch the input of a run again, by its profile's modes and the current policies."""
    access = request.access
    access.require_writer()
    found = repeatable(Run.objects.for_org(access.org)).get_or_404(pk=run_id)
    try:
        repeated = admit.dispatch(access, repeated_request(found))
    except NotFound:
        raise
    except RenseiError as refusal:
        say_refusal(request, refusal)
        return redirect("console:run", access.org.slug, found.id)
    return redirect(reverse("console:run", args=[access.org.slug, repeated.id]) + f"?before={found.id}")


@require_POST
@page
def cancel(request: PageRequest, run_id: str) -> HttpResponse:
    found = Run.objects.for_org(request.access.org).get_or_404(pk=run_id)
    return attempt(
        request,
        lambda: services.cancel_run(request.access, found),
        done="The run is being cancelled.",
        back="run",
        args=(run_id,),
    )


def text_of(found: Run) -> str:
    """The text that the model has written so far."""
    if found.output_text:
        return str(found.output_text)
    chunks = RunChunk.objects.filter(run=found, kind=RunChunk.Kind.DELTA).order_by("seq").values_list("data", flat=True)
    return "".join(data.get("text", "") for data in chunks)


def asked_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The input of the run, as texts and the number of its images; it contains no HTML."""
    turns = []
    for message in body.get("messages", []):
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns.append(
            {
                "role": message["role"],
                "text": "\n\n".join(block["text"] for block in blocks if block["type"] == "text"),
                "images": sum(block["type"] == "image" for block in blocks),
            }
        )
    return turns


def _filtered(found: RunQuerySet, query: QueryDict, wanted: str) -> RunQuerySet:
    if wanted:
        found = found.filter(id__startswith=wanted if wanted.startswith("run_") else f"run_{wanted}")
    if query.get("state") in Run.State.values:
        found = found.filter(state=query["state"])
    if query.get("mode") in AuthMode.values:
        found = found.filter(auth_mode=query["mode"])
    if query.get("profile"):
        found = found.filter(profile_id=query["profile"])
    if query.get("project"):
        found = found.filter(project__slug=query["project"])
    if (day := _day(query)) is not None:
        start = periods.start_of(day)
        found = found.filter(id__gte=first_id_of("run", start), id__lt=first_id_of("run", start + timedelta(days=1)))
    if period := PERIODS.get(str(query.get("since"))):
        found = found.filter(created_at__gte=database_now() - period)
    return found


def _day(query: QueryDict) -> date | None:
    """The UTC day of the filter. None for another text, which filters nothing."""
    try:
        day = date.fromisoformat(query.get("day", ""))
    except ValueError:
        return None
    return day if day < date.max else None


def _window(found: RunQuerySet, *, before: str | None, after: str | None) -> tuple[list[Run], str | None, str | None]:
    """Select one page by the ids at its ends, so that new runs never shift it. Ids sort by time."""
    found = found.listed().select_related("project")
    if after:
        rows = list(found.filter(id__gt=after).order_by("id")[: PAGE_SIZE + 1])
        more, rows = len(rows) > PAGE_SIZE, rows[:PAGE_SIZE][::-1]
        return rows, rows[-1].id if rows else None, rows[0].id if rows and more else None
    if before:
        found = found.filter(id__lt=before)
    rows = list(found.order_by("-id")[: PAGE_SIZE + 1])
    more, rows = len(rows) > PAGE_SIZE, rows[:PAGE_SIZE]
    return rows, rows[-1].id if more else None, rows[0].id if rows and before else None


def _without_cursor(query: QueryDict) -> str:
    kept = query.copy()
    kept.pop("before", None)
    kept.pop("after", None)
    return kept.urlencode()


def _profile_ids(org: Org) -> list[str]:
    """The profiles by which runs can be filtered, deleted ones included."""
    return list(
        Run.objects.for_org(org)
        .exclude(profile_id="")
        .values_list("profile_id", flat=True)
        .distinct()
        .order_by("profile_id")[:100]
    )


def _node_of(found: Run) -> NodeRun | None:
    """Look up the workflow node of a run, without the workflow run's input and document, which may be long."""
    unused = ("workflow_run__input", "workflow_run__version__document", "workflow_run__version__nodes")
    nodes = NodeRun.objects.filter(run=found, reused=False).select_related("workflow_run__version__workflow")
    return nodes.defer(*unused).first()


def live_usage(found: Run, text: str) -> Usage:
    """
    Estimate the usage of a run that has not ended, from what the provider has reported and the text that has arrived.

    The provider reports the output at the end of the answer only, and the prompt at its start.
    """
    chunks = RunChunk.objects.filter(run=found, kind=RunChunk.Kind.USAGE).order_by("-seq")
    reported = Usage.from_dict(chunks.values_list("data", flat=True).first() or {})
    about = min(found.max_tokens, ADAPTERS[found.provider].output_tokens_about(text))
    output = max(reported.output_tokens, about)
    if reported.prompt_tokens:
        return replace(reported, output_tokens=output)
    attempts = found.attempts.order_by("-number").values_list("input_tokens_estimate", flat=True)
    return replace(reported, input_tokens=attempts.first() or 0, output_tokens=output)
