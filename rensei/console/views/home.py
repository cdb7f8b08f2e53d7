"""The start page, the first steps of an organization, and the theme."""

from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required, login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST, require_safe

from billing.limits.snapshot import snapshot_of
from catalog.providers import PROVIDERS
from integrations.keys.services import visible_integrations
from profiles import services as profiles
from rensei.console import overview
from rensei.console.access import PageRequest, page
from rensei.console.context import THEMES
from rensei.console.payers import month_figures
from rensei.core.errors import NotFound
from rensei.dispatch.queries import visible_runs
from rensei.orgs import services
from rensei.orgs.models import User

ONE_YEAR_SECONDS = 365 * 24 * 3600
LATEST_RUNS = 8


@require_safe
@login_required
def home(request: HttpRequest) -> HttpResponse:
    """Send a person to their first organization; an operator without one, to the admin."""
    assert isinstance(request.user, User)
    first = services.memberships_of(request.user).order_by("created_at").first()
    if first is not None:
        return redirect("console:org-home", first.org.slug)
    if request.user.is_staff:
        return redirect("admin:index")
    return render(request, "console/no_org.html")


@require_safe
@login_required
def orgs(request: HttpRequest) -> HttpResponse:
    """List the organizations of a person, for the switcher or as a separate page."""
    assert isinstance(request.user, User)
    found = services.orgs_of(request.user).order_by("name")
    template = "console/_orgs.html" if request.headers.get("HX-Request") else "console/orgs.html"
    return render(
        request,
        template,
        {
            "orgs": found,
            "here": request.GET.get("here"),
            "may_create": services.may_create_org(request.user),
        },
    )


@page
def missing(request: PageRequest, rest: str) -> HttpResponse:
    """Answer an address that no page of the organization has."""
    raise NotFound


@require_safe
@page
def org_home(request: PageRequest) -> HttpResponse:
    """Show the first steps until there is a run, then what needs attention, the next steps and recent activity."""
    access, org = request.access, request.access.org
    runs = list(visible_runs(access).for_table().order_by("-id")[:LATEST_RUNS])
    integrations = list(visible_integrations(access).defer("sealed_key").order_by("name"))
    found = list(profiles.visible_profiles(access).order_by("-is_default", "name")[: overview.PROFILES_MAX + 1])
    shown = found[: overview.PROFILES_MAX]
    is_connected = any(one.provider in PROVIDERS for one in integrations)
    steps = {"connected": is_connected, "described": bool(found), "dispatched": bool(runs)}
    context: dict[str, Any] = {"steps": steps, "ready": bool(runs), "runs": runs}
    if runs:
        snapshot = snapshot_of(org)
        attention = overview.needs_attention(access, integrations=integrations, profiles=shown, snapshot=snapshot)
        context |= {
            "month": month_figures(org, snapshot),
            "quota": snapshot.shared_quota,
            "attention": attention[: overview.LINES_MAX],
            "more_attention": max(0, len(attention) - overview.LINES_MAX),
            "profiles_checked": len(shown) if len(found) > len(shown) else 0,
            "outcomes": overview.outcomes(access, snapshot),
            "spark": overview.sparkline(access, snapshot.now.date()),
            "next_steps": overview.next_steps(access, snapshot, profiles=shown),
        }
    return render(request, "console/home.html", context)


@require_POST
@login_not_required
def theme(request: HttpRequest) -> HttpResponse:
    """Store the theme in a cookie, for browsers without JavaScript."""
    wanted = request.POST.get("theme", "")
    back = request.POST.get("next", "/")
    if not url_has_allowed_host_and_scheme(back, allowed_hosts=None):
        back = "/"
    answer = redirect(back)
    if wanted in THEMES:
        answer.set_cookie(
            "theme", wanted, max_age=ONE_YEAR_SECONDS, samesite="Lax", secure=settings.SESSION_COOKIE_SECURE
        )
    return answer
