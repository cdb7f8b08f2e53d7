"""Runs: the list with its filters, and one run with its decision, updated until it ends."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.contrib import messages
from django.db.models import Exists, OuterRef
from django.http import Http404, HttpResponse, HttpResponseBase, QueryDict, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.template.defaultfilters import pluralize
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from billing.ledger.reports import visible_lines
from billing.models import CostEvent
from integrations.providers.base import ADAPTERS
from profiles import services as profiles
from rensei.console import agent_runs, usage_lines
from rensei.console.access import PageRequest, attempt, page, say_refusal
from rensei.console.run_list import NEWER_MAX, PAGE_SIZE, RunList, filter_choices
from rensei.console.run_texts import asked_of, text_of
from rensei.core import csv_file
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.core.usage import Usage
from rensei.dispatch import runs_csv as runs_file
from rensei.dispatch import saved_views, services
from rensei.dispatch.admission.repeating import ProfileDeleted, repeat, repeatable
from rensei.dispatch.api.agents import download
from rensei.dispatch.models import Run, RunChunk, RunQuerySet
from rensei.dispatch.queries import calls_of, chunks_of, find_run_file, sandboxes_of, visible_runs
from rensei.workflows.models import NodeRun
from rensei.workflows.services import nodes_of

# The part of the page of an agent's run that asks for itself until the run has ended.
AGENT_NOW = "run-now"
# After the end of a run, how long its page waits for the line of its sandbox.
LINE_WITHIN = timedelta(minutes=2)


@require_safe
@page
def runs(request: PageRequest) -> HttpResponse:
    """List the runs that match the filters, newest first. A complete id in the search redirects to its run."""
    access, wanted = request.access, request.GET.get("q", "").replace("\0", "").strip().lower()
    if wanted.startswith("run_") and visible_runs(access).filter(pk=wanted).exists():
        return redirect("console:run", access.org.slug, wanted)
    listed = RunList(access, request.GET)
    context = {
        "listed": listed,
        "page": listed.page(),
        "summary": listed.summary(),
        "query": listed.query,
        "filtered": bool(listed.filter),
        "address": listed.written(),
        "views": list(saved_views.own_views(access)),
        "to_save": listed.to_save(),
        **filter_choices(access, listed.query),
    }
    return render(request, "console/runs.html", context)


@require_safe
@page
def runs_csv(request: PageRequest) -> StreamingHttpResponse:
    """Stream the runs that match the same filters as CSV, the newest that a list reads at once."""
    return _csv(request, RunList(request.access, request.GET).runs)


@require_safe
@page
def newer(request: PageRequest) -> HttpResponse:
    """Count the runs that match the filters and are newer than those on a page."""
    listed = RunList(request.access, request.GET)
    count = listed.newer_than(listed.query.get("seen", ""))
    return render(request, "console/_newer_runs.html", {"count": count, "most": NEWER_MAX, "listed": listed})


@require_POST
@page
def selected(request: PageRequest) -> HttpResponseBase:
    """Cancel, repeat, compare or export the runs that were ticked in a list."""
    access, action = request.access, request.POST.get("action")
    asked = [run_id for run_id in request.POST.getlist("run") if "\0" not in run_id]
    ids = list(dict.fromkeys(asked))[:PAGE_SIZE]
    found = visible_runs(access).filter(pk__in=ids)
    back = reverse("console:runs", args=[access.org.slug])
    if action == "export":
        return _csv(request, found)
    if action == "compare":
        query = QueryDict(mutable=True)
        query.setlist("run", ids[:2])
        return redirect(reverse("console:compare", args=[access.org.slug]) + "?" + query.urlencode())
    access.require_writer()
    if action == "cancel":
        done, refused = _each(request, found.exclude(state__in=Run.ENDED), partial(services.cancel_run, access))
        say = "being cancelled"
    elif action == "again":
        done, refused = _each(request, repeatable(found), partial(repeat, access))
        say = "dispatched again"
    else:
        raise Http404
    if done:
        messages.success(request, f"{done} run{pluralize(done)} {'is' if done == 1 else 'are'} {say}.")
    if done < len(ids) and not refused:
        rest = len(ids) - done
        messages.info(request, f"{rest} of the selected runs cannot be. They have ended, or their input is not stored.")
    return redirect(back)


@require_POST
@page
def save_view(request: PageRequest) -> HttpResponse:
    """Save the filters and the order of a list under a name of the member's own, and return to the list."""
    access = request.access
    access.require_writer()
    if "query" not in request.POST:
        raise Http404
    query = RunList(access, QueryDict(request.POST["query"])).to_save()
    try:
        view = saved_views.save_view(access, name=request.POST.get("name", ""), query=query)
    except RenseiError as refusal:
        say_refusal(request, refusal)
    else:
        messages.success(request, f"The view {view.name} was saved.")
    return redirect(reverse("console:runs", args=[access.org.slug]) + (f"?{query}" if query else ""))


@require_POST
@page
def delete_view(request: PageRequest, view_id: str) -> HttpResponse:
    view = saved_views.delete_view(request.access, view_id)
    messages.success(request, f"The view {view.name} was deleted.")
    return redirect("console:runs", request.access.org.slug)


@require_safe
@page
def run(request: PageRequest, run_id: str) -> HttpResponse:
    """Show one run; htmx requests only its changing part until it and its sandbox have ended."""
    own = profiles.visible_profiles(request.access).filter(public_id=OuterRef("profile_id"))
    stored = visible_runs(request.access).select_related("created_by", "host")
    found = stored.annotate(has_profile=Exists(own)).get_or_404(pk=run_id)
    ended = found.state in Run.ENDED
    # A call is in the ledger when it has ended, and a run that makes one call ends with it.
    lines = visible_lines(request.access).filter(run_id=found.id).order_by("id")
    events = list(lines) if ended or found.is_agent else []
    of_calls = [event for event in events if event.kind != CostEvent.Kind.CAPACITY]
    now = database_now()
    context = {
        "run": found,
        "ended": ended,
        "asks_again": not ended or _awaits_line(found, now=now),
        "now": now,
        "repeatable": repeatable(visible_runs(request.access).filter(pk=found.pk)).exists(),
        "node": _node_of(found),
        "before": request.GET.get("before", ""),
        "profile_is_deleted": bool(found.profile_id) and not found.has_profile,  # type: ignore[attr-defined]
        "charges": events,
        "capacity": [event for event in events if event.kind == CostEvent.Kind.CAPACITY],
        **(_of_agent(request, found, of_calls) if found.is_agent else _of_call(found, of_calls, ended=ended)),
    }
    context["several_models"] = len({line.model for line in context["lines"]}) > 1
    if request.htmx:
        return render(request, "console/_run.html", context)
    asked = getattr(found, "input", None)
    context["asked"] = asked_of(asked.body) if asked else []
    return render(request, "console/run.html", context)


def _awaits_line(ended: Run, *, now: datetime) -> bool:
    """Return whether the line of a run's sandbox is due: it is written soon after the end of the run."""
    is_due = ended.in_cloud and ended.finished_at is not None and now - ended.finished_at < LINE_WITHIN
    return is_due and sandboxes_of(ended).filter(ended_at=None).exists()


def _of_call(found: Run, events: list[CostEvent], *, ended: bool) -> dict[str, Any]:
    """The answer, the attempts, and the cost, which is estimated until the end."""
    text = text_of(found)
    usage = found.usage if ended else live_usage(found, text).as_dict()
    lines = usage_lines.of_ledger(events) if ended else usage_lines.so_far(found, Usage.from_dict(usage))
    known = [line.amount for line in lines if line.amount is not None]
    return {
        "attempts": list(found.attempts.order_by("number")),
        "text": text,
        "usage": usage,
        "lines": lines,
        "amount": found.amount_picodollars if ended else sum(known) if len(known) == len(lines) else None,
    }


def _of_agent(request: PageRequest, found: Run, events: list[CostEvent]) -> dict[str, Any]:
    """What a program was given, has done and has left. Its cost is that of the calls that have ended."""
    calls = list(calls_of(request.access, found.id).order_by("number"))
    known = [event.amount_picodollars for event in events if event.amount_picodollars is not None]
    shown = {
        "calls": calls,
        "boxes": agent_runs.timeline(sandboxes_of(found), calls, events, now=database_now()),
        "usage": sum((Usage.of(event) for event in events), start=Usage()).as_dict(),
        "lines": usage_lines.of_ledger(events),
        "amount": sum(known) if len(known) == len(events) else None,
    }
    if request.htmx and request.htmx.target == AGENT_NOW:
        # A stream writes the text and the log into the page.
        return shown
    text, log = text_of(found), agent_runs.log_of(found)
    asked = getattr(found, "input", None)
    return shown | {
        "text": text,
        "text_is_cut": agent_runs.text_is_cut(found, text),
        "log": log,
        "log_is_cut": agent_runs.log_is_cut(log),
        "program": agent_runs.program_of(asked.body) if asked else None,
        "left_out": agent_runs.left_out_of(found.agent_result) if found.agent_result else [],
    }


@require_safe
@page
def run_file(request: PageRequest, run_id: str, file_id: str) -> HttpResponse:
    """Download a file that an agent has left."""
    return download(find_run_file(request.access, run_id, file_id))


@require_POST
@page
def again(request: PageRequest, run_id: str) -> HttpResponse:
    """Dispatch the input of a run again, by its profile's modes and the current policies."""
    access = request.access
    access.require_writer()
    found = repeatable(visible_runs(access)).get_or_404(pk=run_id)
    try:
        repeated = repeat(access, found)
    except ProfileDeleted:
        # It says so, and offers the others.
        return redirect(reverse("console:playground", args=[access.org.slug]) + f"?run={found.id}")
    except RenseiError as refusal:
        say_refusal(request, refusal)
        return redirect("console:run", access.org.slug, found.id)
    return redirect(reverse("console:run", args=[access.org.slug, repeated.id]) + f"?before={found.id}")


@require_POST
@page
def cancel(request: PageRequest, run_id: str) -> HttpResponse:
    found = visible_runs(request.access).get_or_404(pk=run_id)
    return attempt(
        request,
        lambda: services.cancel_run(request.access, found),
        done="The run is being cancelled.",
        back="run",
        args=(run_id,),
    )


def _each(request: PageRequest, found: RunQuerySet, act: Callable[[Run], object]) -> tuple[int, bool]:
    """
    Act on runs one by one until one is refused, which the next page says.

    Each is loaded when it is due, as an input may be large. Returns the number of those before, and if one was refused.
    """
    done = 0
    for run_id in list(found.order_by("id").values_list("id", flat=True)):
        one = found.filter(pk=run_id).first()
        if one is None:
            continue
        try:
            act(one)
        except RenseiError as refusal:
            say_refusal(request, refusal)
            return done, True
        done += 1
    return done, False


def _csv(request: PageRequest, found: RunQuerySet) -> StreamingHttpResponse:
    return csv_file.answer(request, runs_file.write(found), filename=f"{request.access.org.slug}-runs.csv")


def _node_of(found: Run) -> NodeRun | None:
    """Look up the workflow node of a run, without the workflow run's input and document, which may be long."""
    unused = ("workflow_run__input", "workflow_run__version__document", "workflow_run__version__nodes")
    nodes = nodes_of(found).filter(reused=False).select_related("workflow_run__version__workflow")
    return nodes.defer(*unused).first()


def live_usage(found: Run, text: str) -> Usage:
    """
    Estimate the usage of a run that has not ended, from what the provider has reported and the text that has arrived.

    The provider reports the output at the end of the answer only, and the prompt at its start.
    """
    chunks = chunks_of(found, RunChunk.Kind.USAGE).reverse()
    reported = Usage.from_dict(chunks.values_list("data", flat=True).first() or {})
    about = min(found.max_tokens, ADAPTERS[found.provider].output_tokens_about(text))
    output = max(reported.output_tokens, about)
    if reported.prompt_tokens:
        return replace(reported, output_tokens=output)
    attempts = found.attempts.order_by("-number").values_list("input_tokens_estimate", flat=True)
    return replace(reported, input_tokens=attempts.first() or 0, output_tokens=output)
