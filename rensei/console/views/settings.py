"""The plain lists of Settings: API tokens and machines."""

from collections import Counter
from datetime import timedelta

from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_safe

from rensei.console.access import PageRequest, attempt, page
from rensei.console.answers import confirm
from rensei.console.forms.settings import TokenForm
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.dispatch.models import Run
from rensei.dispatch.run_figures import RunSums, run_figures
from rensei.orgs import services
from rensei.tokens.machines import revoke_host, visible_hosts
from rensei.tokens.services import create_token, revoke_token, visible_tokens

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
    context = {
        "rows": [{"token": token, "used": used.get(token.pk, RunSums())} for token in stored],
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


# Machines


@require_safe
@page
def machines(request: PageRequest) -> HttpResponse:
    stored = visible_hosts(request.access).order_by("revoked_at", "-created_at")
    queued = Run.objects.for_org(request.access.org).filter(state=Run.State.QUEUED, host__in=stored)
    waiting = Counter(queued.values_list("host", flat=True))
    return render(request, "console/machines.html", {"machines": stored, "waiting": waiting})


@require_http_methods(["GET", "HEAD", "POST"])
@page
def machine_revoke(request: PageRequest, machine_id: str) -> HttpResponse:
    host = visible_hosts(request.access).get_or_404(pk=machine_id)
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
