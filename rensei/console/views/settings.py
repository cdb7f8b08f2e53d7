"""The plain lists of Settings: API tokens, capacity and machines."""

import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.template.defaultfilters import pluralize
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_safe

from integrations.capacity import CAPACITY
from rensei.console.access import PageRequest, attempt, page
from rensei.console.answers import confirm
from rensei.console.forms.settings import NewPoolForm, PoolForm, TokenCapForm, TokenForm
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.core.money import PICODOLLARS_PER_DOLLAR, in_picodollars
from rensei.dispatch import capacity as capacities
from rensei.dispatch.models import CapacityPool, Run
from rensei.dispatch.pools import SANDBOX
from rensei.dispatch.pools.accounts import DRIVERS
from rensei.dispatch.pools.cloud import common_settings
from rensei.dispatch.queries import visible_pools, visible_runs
from rensei.dispatch.run_figures import RunSums, run_figures
from rensei.dispatch.services import create_pool, remove_pool, update_pool
from rensei.orgs import services
from rensei.orgs.models import SpendCap
from rensei.tokens import caps
from rensei.tokens.machines import require_revoke, revoke_host, visible_hosts
from rensei.tokens.services import create_token, require_change, revoke_token, update_token, visible_tokens

# API tokens


@require_http_methods(["GET", "HEAD", "POST"])
@page
def tokens(request: PageRequest) -> HttpResponse:
    """List the tokens, and create one. The new token is shown only in this answer."""
    access = request.access
    projects = list(services.visible_projects(access).order_by("name"))
    form = TokenForm(request.POST or None, projects=projects)
    fresh = None
    if request.method == "POST" and form.is_valid():
        fields = form.cleaned_data
        by_slug = {project.slug: project for project in projects}
        try:
            created, secret = create_token(
                access,
                name=fields["name"],
                project=by_slug.get(fields["project"]),
                scopes=fields["scopes"],
                allowed_networks=fields["allowed_networks"].replace(",", " ").split(),
                expires_at=timezone.now() + timedelta(days=int(fields["expires"])) if fields["expires"] else None,
                cap=in_picodollars(fields["cap"]),
            )
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            fresh = {"token": created, "secret": secret.reveal()}
            form = TokenForm(projects=projects)
    stored = visible_tokens(access).filter(revoked_at=None).order_by("-created_at")
    now = database_now()
    month = run_figures(access.org, start=now.date().replace(day=1), end=now.date(), by="token")
    used = month.by_key()
    capped = caps.of_tokens([token.pk for token in stored])
    context = {
        "rows": [
            {
                "token": token,
                "used": used.get(token.pk, RunSums()),
                "cap": _shown(capped.get(token.pk), now),
                "may_change": access.manages or token.membership_id == access.membership.pk,
            }
            for token in stored
        ],
        "since": month.since,
        "month": now.date().replace(day=1),
        "form": form,
        "fresh": fresh,
        "now": now,
    }
    return render(request, "console/tokens.html", context, status=form.status)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def token_revoke(request: PageRequest, token_id: str) -> HttpResponse:
    token = visible_tokens(request.access).get_or_404(pk=token_id)
    require_change(request.access, token)
    if request.method == "POST":
        return attempt(
            request,
            lambda: revoke_token(request.access, token),
            done=f"{token.name} was revoked.",
            back="tokens",
        )
    text = (
        f"Apps that use the token ending in {token.hint} stop working, and so does everything created with it: "
        "tokens, machines and open invitations. This cannot be undone."
    )
    return confirm(
        request, title=f"Revoke {token.name}?", text=text, action="Revoke", section="API Tokens", back="tokens"
    )


@require_http_methods(["GET", "HEAD", "POST"])
@page
def token_cap(request: PageRequest, token_id: str) -> HttpResponse:
    """Set, change or remove the cap of a token."""
    access = request.access
    token = visible_tokens(access).get_or_404(pk=token_id)
    require_change(access, token)
    now = database_now()
    cap = caps.of_tokens([token.pk]).get(token.pk)
    is_now = None if cap is None else Decimal(cap.picodollars) / PICODOLLARS_PER_DOLLAR
    form = TokenCapForm(request.POST or None, initial={"cap": is_now})
    if request.method == "POST" and form.is_valid():
        amount = in_picodollars(form.cleaned_data["cap"])
        try:
            update_token(access, token, cap=amount)
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            done = f"{token.name} has no cap now." if amount is None else f"The cap of {token.name} was saved."
            messages.success(request, done)
            return redirect("console:tokens", access.org.slug)
    context = {"token": token, "cap": _shown(cap, now), "form": form}
    return render(request, "console/token_cap.html", context, status=form.status)


def _shown(cap: SpendCap | None, now: datetime) -> dict[str, Any] | None:
    """The figures of a cap for the pages."""
    if cap is None:
        return None
    figures = caps.described(cap)
    taken = figures["used"] + figures["held"]
    return {**figures, "percent": min(100, taken * 100 // cap.picodollars) if cap.picodollars else 100}


# Capacity


@require_safe
@page
def capacity(request: PageRequest) -> HttpResponse:
    """List the pools on which runs can execute, why some cannot be used now, and what they have cost this month."""
    costs = capacities.costs_of_month(request.access)
    rows = [
        {
            "pool": pool,
            "is_charged": pool.provider_id in CAPACITY,
            "cost": costs.pop((pool.name, pool.provider_id), None),
        }
        for pool in capacities.of_org(request.access)
    ]
    return render(request, "console/capacity.html", {"rows": rows, "removed": list(costs.values())})


@require_http_methods(["GET", "HEAD", "POST"])
@page
def pool_add(request: PageRequest) -> HttpResponse:
    request.access.require_manager()
    form = NewPoolForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        fields = form.cleaned_data
        try:
            pool = create_pool(
                request.access,
                name=fields["name"],
                provider_id=fields["provider_id"],
                config=fields["config"],
                active=fields["active"],
            )
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"The pool {pool.name} was added.")
            return redirect("console:capacity", request.access.org.slug)
    return render(
        request, "console/pool.html", {"form": form, "settings": _settings_of([SANDBOX, *DRIVERS])}, status=form.status
    )


@require_http_methods(["GET", "HEAD", "POST"])
@page
def pool_edit(request: PageRequest, pool_id: str) -> HttpResponse:
    request.access.require_manager()
    pool = visible_pools(request.access).get_or_404(pk=pool_id)
    form = PoolForm(request.POST or None, initial={"config": pool.config, "active": pool.active})
    if request.method == "POST" and form.is_valid():
        try:
            update_pool(request.access, pool, **form.cleaned_data)
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"The pool {pool.name} was saved.")
            return redirect("console:capacity", request.access.org.slug)
    (state,) = capacities.states_of(request.access, [pool])
    context = {"form": form, "pool": pool, "state": state, "settings": _settings_of([pool.provider_id])}
    return render(request, "console/pool.html", context, status=form.status)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def pool_delete(request: PageRequest, pool_id: str) -> HttpResponse:
    request.access.require_manager()
    pool = visible_pools(request.access).get_or_404(pk=pool_id)
    if request.method == "POST":
        return attempt(
            request,
            lambda: remove_pool(request.access, pool),
            done=f"The pool {pool.name} was deleted.",
            back="capacity",
        )
    text = "Dispatches that name it are refused from then on. Its runs and its costs stay."
    if live := capacities.live_on(pool):
        text += (
            f" {live} run{pluralize(live)} of it {pluralize(live, 'is,are')} under way or waiting. Those under way go"
            " on. Those that wait for a sandbox in a cloud fail when it is their turn."
        )
    return confirm(
        request, title=f"Delete the pool {pool.name}?", text=text, action="Delete", section="Capacity", back="capacity"
    )


def _settings_of(providers: Iterable[str]) -> list[tuple[str, str, str, str]]:
    """List provider, name, default and rule of each setting that pools of these providers have."""
    return [
        (CapacityPool.Provider(provider).label, name, json.dumps(setting.default), setting.reason)
        for provider in providers
        if provider in DRIVERS or provider == SANDBOX
        for name, setting in (DRIVERS[provider].all_settings() if provider in DRIVERS else common_settings()).items()
    ]


# Machines


@require_safe
@page
def machines(request: PageRequest) -> HttpResponse:
    stored = visible_hosts(request.access).order_by("revoked_at", "-created_at")
    queued = visible_runs(request.access).filter(state=Run.State.QUEUED, host__in=stored)
    waiting = Counter(queued.values_list("host", flat=True))
    return render(request, "console/machines.html", {"machines": stored, "waiting": waiting})


@require_http_methods(["GET", "HEAD", "POST"])
@page
def machine_revoke(request: PageRequest, machine_id: str) -> HttpResponse:
    host = visible_hosts(request.access).get_or_404(pk=machine_id)
    require_revoke(request.access, host)
    if request.method == "POST":
        return attempt(
            request,
            lambda: revoke_host(request.access, host),
            done=f"{host.name} was revoked.",
            back="machines",
        )
    text = "It receives no more runs, and its tokens stop working. To connect it again, run rensei setup on it."
    return confirm(
        request, title=f"Revoke {host.name}?", text=text, action="Revoke", section="Machines", back="machines"
    )
