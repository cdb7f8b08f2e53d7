"""Playground → Agent: give a program to a sandbox, and go to the page of its run."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from billing.limits.snapshot import snapshot_of
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.console.access import PageRequest, page
from rensei.console.forms.agents import OWN, AgentForm
from rensei.console.run_texts import last_question
from rensei.console.views.playground import chosen_of, entries_of, preview_of
from rensei.core.errors import FieldError, NotFound, RenseiError
from rensei.core.money import PICODOLLARS_PER_DOLLAR, in_picodollars
from rensei.dispatch import capacity, pools
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.repeating import repeated_request
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.agents import CLAUDE_CODE, checked_repository
from rensei.dispatch.capacity import PoolState
from rensei.dispatch.context import Known
from rensei.dispatch.models import Run
from rensei.dispatch.pools import AgentProgramUnavailable
from rensei.dispatch.queries import visible_runs
from rensei.orgs import services as orgs
from rensei.orgs.access import Access


@require_http_methods(["GET", "HEAD", "POST"])
@page
def agent(request: PageRequest) -> HttpResponse:
    """Show the form with what a dispatch would do, and dispatch it. Without a pool for it, say what is missing."""
    access = request.access
    own = list(profiles.visible_profiles(access).order_by("-is_default", "name"))
    offered = [pool for pool in capacity.of_org(access) if pool.takes_agents]
    usable = [pool.name for pool in offered if pool.is_active]
    again = _again(access, request.GET.get("run"))
    chosen = chosen_of(own, request.POST.get("profile") or request.GET.get("profile") or again.get("profile"))
    form = AgentForm(
        request.POST or None,
        request.FILES or None,
        initial=again | ({"profile": chosen.public_id} if chosen else {}),
        profiles=own,
        projects=list(orgs.visible_projects(access).order_by("name")),
        pools=usable,
        kinds=_kinds(offered),
    )
    updating = request.POST.get("action") == "update"
    if request.method == "POST" and not updating:
        access.require_writer()
        if form.is_valid():
            try:
                run = admit.dispatch(access, _request_of(form))
            except NotFound:
                raise
            except RenseiError as refusal:
                form.refuse(refusal)
            else:
                return redirect("console:run", access.org.slug, run.id)
    context: dict[str, Any] = {
        "form": form,
        "chosen": chosen,
        "pools": offered,
        "usable": usable,
        "again": again,
        "preview": _preview(access, form, chosen) if usable else None,
    }
    if updating:
        form.errors.clear()
    return render(request, "console/playground_agent.html", context, status=form.status)


def _kinds(offered: Sequence[PoolState]) -> list[str]:
    """The programs that can be used now: Claude Code where an active pool has it, which depends on its provider."""
    for pool in {pool.provider_id: pool for pool in offered if pool.is_active}.values():
        try:
            pools.Pool(name=pool.name, provider_id=pool.provider_id).require_claude_code()
        except AgentProgramUnavailable:
            continue
        return [OWN, CLAUDE_CODE]
    return [OWN]


def _request_of(form: AgentForm) -> DispatchRequest:
    """:raises FieldError: for the first invalid part"""
    fields = form.cleaned_data
    return DispatchRequest(
        profile_id=fields["profile"],
        project_id=fields["project"] or None,
        pool=fields["pool"],
        messages=messages_from(text=fields["text"], messages=None),
        max_tokens=fields["max_tokens"],
        max_cost_picodollars=in_picodollars(fields["max_cost_usd"]),
        agent=form.definition(),
    )


def _preview(access: Access, form: AgentForm, chosen: ModelProfile | None) -> dict[str, Any] | None:
    """Describe what a dispatch of the form's current state would do."""
    if chosen is None:
        return None
    form.is_valid()  # Fills in what is valid so far.
    fields = form.cleaned_data if form.is_bound else form.initial
    first = form.fields["pool"].choices[0][0]  # type: ignore[attr-defined]
    cost = fields.get("max_cost_usd", form.fields["max_cost_usd"].initial)
    asked = DispatchRequest(
        profile_id=chosen.public_id,
        project_id=fields.get("project") or None,
        pool=fields.get("pool") or first,
        max_tokens=fields.get("max_tokens"),
        max_cost_picodollars=in_picodollars(Decimal(cost)),
        agent=_preview_of_agent(form, fields.get("kind")),
    )
    known = Known(standing=snapshot_of(access.org), entries=entries_of(access, chosen), profile=chosen)
    return preview_of(access, asked, known)


def _preview_of_agent(form: AgentForm, kind: str | None) -> dict[str, Any]:
    """Return of an agent what decides whether it can be dispatched, as far as the form has it."""
    agent: dict[str, Any] = {"program": CLAUDE_CODE if kind == CLAUDE_CODE else []}
    if form.is_bound and (repository := form.repository()):
        with suppress(FieldError):
            agent["git"] = checked_repository(repository, pointer="")
    return agent


def _again(access: Access, run_id: str | None) -> dict[str, Any]:
    """Fill the form with an earlier run of an agent, without its files and its environment, which may be secret."""
    runs = visible_runs(access).filter(is_agent=True, input__isnull=False).select_related("input", "project")
    run = runs.filter(pk=run_id).first() if run_id else None
    return _options(run) if run is not None else {}


def _options(run: Run) -> dict[str, Any]:
    asked = repeated_request(run)
    assert asked.agent is not None
    program = asked.agent["program"]
    is_claude_code = program == CLAUDE_CODE
    return {
        "profile": asked.profile_id,
        "project": asked.project_id or "",
        "pool": asked.pool,
        "kind": CLAUDE_CODE if is_claude_code else OWN,
        "program": "" if is_claude_code else shlex.join(program),
        "max_turns": asked.agent.get("maxTurns"),
        "git_url": asked.agent.get("git", {}).get("url", ""),
        "git_ref": asked.agent.get("git", {}).get("ref", ""),
        "git_username": asked.agent.get("git", {}).get("username", ""),
        "text": last_question(run.input.body),
        "outputs": "\n".join(asked.agent["outputs"]),
        "max_cost_usd": Decimal(asked.max_cost_picodollars or 0) / PICODOLLARS_PER_DOLLAR,
        "timeout_seconds": asked.agent["timeoutSeconds"],
        "max_tokens": asked.max_tokens if asked.max_tokens_is_asked else None,
    }
