"""Connect your app: the base URL, a token and ready-made texts for a client, until its first request has arrived."""

import re
from datetime import timedelta
from typing import Any

from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_http_methods

from profiles import services as profiles
from rensei.console import snippets
from rensei.console.access import PageRequest, page
from rensei.console.forms.settings import AppTokenForm
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.core.ids import first_id_of
from rensei.dispatch.models import Run
from rensei.dispatch.queries import visible_runs
from rensei.orgs.access import Access
from rensei.orgs.scopes import Scope
from rensei.tokens.services import create_token

TOKEN_LASTS = timedelta(days=90)
# A page that was opened longer ago waits for a request from now on, so that a search never reads many runs.
WAITING_MAX = timedelta(hours=1)
RUN_ID = re.compile(r"run_[0-9a-z]{26}")


@require_http_methods(["GET", "HEAD", "POST"])
@page
def connect(request: PageRequest) -> HttpResponse:
    """Show how to call the gateway, create a token for it, and wait for the person's first request."""
    access = request.access
    if request.method == "POST":
        access.require_writer()
    form = AppTokenForm(request.POST or None)
    secret: str | None = None
    if request.method == "POST" and form.is_valid():
        try:
            _, created = create_token(
                access,
                name=form.cleaned_data["name"],
                scopes=[Scope.GATEWAY],
                expires_at=timezone.now() + TOKEN_LASTS,
            )
            secret = created.reveal()
        except RenseiError as refusal:
            form.refuse(refusal)
    own = list(profiles.visible_profiles(access).filter(project=None).order_by("-is_default", "name"))
    # The gateway has no machine to run a host session on.
    profile = next((one for one in own if set(one.auth_modes) - {AuthMode.HOST_SESSION}), None)
    now = database_now()
    since = request.GET.get("since", "")
    if not RUN_ID.fullmatch(since) or since < first_id_of("run", now - WAITING_MAX):
        since = first_id_of("run", now)
    context: dict[str, Any] = {
        "form": form,
        "secret": secret,
        "profile": profile,
        "snippets": snippets.of_gateway(profile.public_id, token=secret) if profile else [],
        "since": since,
        "arrived": _first_since(access, since),
    }
    return render(request, "console/connect.html", context, status=form.status)


def _first_since(access: Access, since: str) -> Run | None:
    """The person's first call through the gateway whose run has this id or a later one."""
    calls = visible_runs(access).listed().filter(created_by=access.user, via=Run.Via.GATEWAY)
    first: Run | None = calls.filter(id__gte=since).order_by("id").first()
    return first
