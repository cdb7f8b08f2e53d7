"""Settings → Projects & Access: the projects, their contents, and their costs."""

from collections import Counter
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from billing.ledger import reports
from profiles.services import visible_profiles
from rensei.console.access import PageRequest, attempt, page
from rensei.console.answers import confirm
from rensei.console.forms.settings import ProjectForm, RenameForm
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.dispatch import capacity
from rensei.dispatch.pools import LOCAL
from rensei.dispatch.services import set_project_pool
from rensei.orgs import services
from rensei.orgs.access import Access
from rensei.orgs.models import Project
from rensei.orgs.shapes import proposed_slug
from rensei.policies.services import Matrix, matrices_of


@require_http_methods(["GET", "HEAD", "POST"])
@page
def projects(request: PageRequest) -> HttpResponse:
    if request.method == "POST":
        request.access.require_manager()
    form = ProjectForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            name = form.cleaned_data["name"]
            slug = form.cleaned_data["slug"] or proposed_slug(name, fallback="project")
            created = services.create_project(request.access, slug=slug, name=name)
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"{created.name} was created.")
            return redirect("console:projects", request.access.org.slug)
    stored = list(services.visible_projects(request.access).order_by("name"))
    context = {"rows": _project_rows(request.access, stored), "form": form}
    return render(request, "console/projects.html", context, status=form.status)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def project_rename(request: PageRequest, project_id: str) -> HttpResponse:
    request.access.require_manager()
    project = services.find_project(request.access, project_id)
    title = project.name
    states = capacity.of_org(request.access)
    names = dict.fromkeys([pool.name for pool in states if pool.state != capacity.INACTIVE and pool.name != LOCAL])
    if project.pool:
        names[project.pool] = None
    form = RenameForm(request.POST or None, initial={"name": project.name, "pool": project.pool}, pools=names)
    if request.method == "POST" and form.is_valid():
        fields = form.cleaned_data
        try:
            services.update_project(request.access, project, name=fields["name"])
            if fields["pool"] != project.pool:
                set_project_pool(request.access, project, pool=fields["pool"] or None)
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
    going = [profile.name for profile in visible_profiles(request.access).filter(project=project)]
    text = "Its access policy and tokens go with it. Runs and costs stay."
    if going:
        text += " These profiles are deleted too:"
    title = f"Delete {project.name}?"
    return confirm(
        request, title=title, text=text, action="Delete", section="Projects & Access", back="projects", items=going
    )


def _project_rows(access: Access, projects: list[Project]) -> list[dict[str, Any]]:
    """Each project with its profiles, its cost of this month, and what its own policy denies."""
    now = database_now()
    month = reports.usage_by_each(access.org, start=now.date().replace(day=1), end=now.date(), groups=["project"])
    spent = {line.key: line for line in month["project"]}
    profiles = Counter(visible_profiles(access).filter(project__isnull=False).values_list("project", flat=True))
    denied = {project: _denied(matrix) for project, matrix in matrices_of(projects).items()}
    return [
        {
            "project": project,
            "profiles": profiles[project.pk],
            "spent": spent.get(project.slug),
            "denied": denied.get(project.pk, []),
        }
        for project in projects
    ]


def _denied(matrix: Matrix) -> list[str]:
    """The auth modes that some row of a policy denies, in their order."""
    found = {mode for row in matrix.values() for mode, rule in row.items() if rule.get("allowed") is False}
    return [mode.value for mode in AuthMode if mode in found]
