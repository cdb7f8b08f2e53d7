"""The plain lists of Settings: API tokens, machines, projects."""

from datetime import timedelta

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_safe

from profiles.models import ModelProfile
from rensei.console.access import PageRequest, attempt, page
from rensei.console.answers import confirm, only
from rensei.console.forms.settings import ProjectForm, RenameForm, TokenForm
from rensei.core.errors import RenseiError
from rensei.orgs import services
from rensei.orgs.models import ApiToken, Host, Role

# API tokens


@require_http_methods(["GET", "HEAD", "POST"])
@page
def tokens(request: PageRequest) -> HttpResponse:
    """List the tokens, and make one. The new one is shown in this answer and never again."""
    access = request.access
    projects = list(services.visible_projects(access).order_by("name"))
    form = TokenForm(request.POST or None, projects=projects)
    fresh = None
    if request.method == "POST" and form.is_valid():
        fields = form.cleaned_data
        by_slug = {project.slug: project for project in projects}
        try:
            created, secret = services.create_token(
                access,
                name=fields["name"],
                project=by_slug.get(fields["project"]),
                expires_at=timezone.now() + timedelta(days=int(fields["expires"])) if fields["expires"] else None,
            )
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            fresh = {"token": created, "secret": secret.reveal()}
            form = TokenForm(projects=projects)
    stored = (
        ApiToken.objects.for_org(access.org)
        .filter(revoked_at=None)
        .select_related("membership__user", "project", "host")
    )
    if not access.manages and access.role != Role.AUDITOR:
        stored = stored.filter(membership=access.membership)
    context = {"tokens": stored.order_by("-created_at"), "form": form, "fresh": fresh, "now": timezone.now()}
    return render(request, "console/tokens.html", context, status=form.status)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def token_revoke(request: PageRequest, token_id: str) -> HttpResponse:
    token = only(ApiToken.objects.for_org(request.access.org).filter(pk=token_id))
    if request.method == "POST":
        return attempt(
            request,
            lambda: services.revoke_token(request.access, token),
            done=f"{token.name} was revoked.",
            back="tokens",
        )
    text = f"Programs that use the token ending in {token.hint} are shut out at once. It cannot be undone."
    return confirm(
        request, title=f"Revoke {token.name}?", text=text, action="Revoke", section="API Tokens", back="tokens"
    )


# Machines


@require_safe
@page
def machines(request: PageRequest) -> HttpResponse:
    stored = Host.objects.for_org(request.access.org).select_related("owner").order_by("revoked_at", "-created_at")
    return render(request, "console/machines.html", {"machines": stored})


@require_http_methods(["GET", "HEAD", "POST"])
@page
def machine_revoke(request: PageRequest, machine_id: str) -> HttpResponse:
    host = only(Host.objects.for_org(request.access.org).filter(pk=machine_id))
    if request.method == "POST":
        return attempt(
            request,
            lambda: services.revoke_host(request.access, host),
            done=f"{host.name} was shut out.",
            back="machines",
        )
    text = "It gets no more runs, and its tokens stop working. Running rensei setup on it registers it anew."
    return confirm(
        request, title=f"Revoke {host.name}?", text=text, action="Revoke", section="Machines", back="machines"
    )


# Projects


@require_http_methods(["GET", "HEAD", "POST"])
@page
def projects(request: PageRequest) -> HttpResponse:
    form = ProjectForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            created = services.create_project(request.access, **form.cleaned_data)
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"{created.name} was created.")
            return redirect("console:projects", request.access.org.slug)
    stored = services.visible_projects(request.access).order_by("name")
    return render(request, "console/projects.html", {"projects": stored, "form": form}, status=form.status)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def project_rename(request: PageRequest, project_id: str) -> HttpResponse:
    request.access.require_manager()
    project = services.find_project(request.access, project_id)
    title = project.name
    form = RenameForm(request.POST or None, initial={"name": project.name})
    if request.method == "POST" and form.is_valid():
        try:
            services.update_project(request.access, project, name=form.cleaned_data["name"])
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"{project.name} was saved.")
            return redirect("console:projects", request.access.org.slug)
    context = {"form": form, "project": project, "title": title}
    return render(request, "console/project_rename.html", context, status=form.status)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def project_delete(request: PageRequest, project_id: str) -> HttpResponse:
    request.access.require_manager()
    project = services.find_project(request.access, project_id)
    if request.method == "POST":
        return attempt(
            request,
            lambda: services.delete_project(request.access, project),
            done=f"{project.name} was deleted.",
            back="projects",
        )
    going = [profile.name for profile in ModelProfile.objects.for_org(request.access.org).filter(project=project)]
    text = "Its access policy and tokens go with it. Runs and costs stay."
    if going:
        text += " These profiles are deleted too:"
    title = f"Delete {project.name}?"
    return confirm(
        request, title=title, text=text, action="Delete", section="Projects & Access", back="projects", items=going
    )
