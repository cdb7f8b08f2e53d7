"""Settings → Organization: its name and logo letter; and the page that creates another one."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from rensei.console.access import PageRequest, page
from rensei.console.forms.organization import NewOrganizationForm, OrganizationForm
from rensei.core.errors import NotPermitted, RenseiError
from rensei.core.proxies import client_address
from rensei.orgs import services
from rensei.orgs.models import User
from rensei.orgs.shapes import proposed_slug


@require_http_methods(["GET", "HEAD", "POST"])
@page
def organization(request: PageRequest) -> HttpResponse:
    """Show the organization, and change its name and logo letter."""
    access = request.access
    if request.method == "POST":
        access.require_org_manager()
    form = OrganizationForm(request.POST or None, initial={"name": access.org.name, "mark": access.org.mark})
    if request.method == "POST" and form.is_valid():
        try:
            services.update_org(access, **form.cleaned_data)
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, "The organization was saved.")
            return redirect("console:organization", access.org.slug)
    context = {"form": form, "may_create": services.may_create_org(access.user)}
    return render(request, "console/organization.html", context, status=form.status)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def create(request: HttpRequest) -> HttpResponse:
    """Create an organization of the person's own, if they may."""
    assert isinstance(request.user, User)
    if not services.may_create_org(request.user):
        status = NotPermitted.status if request.method == "POST" else 200
        return render(request, "console/org_create.html", {"form": None}, status=status)
    form = NewOrganizationForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        name = form.cleaned_data["name"]
        slug = form.cleaned_data["slug"] or proposed_slug(name, fallback="organization")
        try:
            org = services.create_own_org(request.user, name=name, slug=slug, address=client_address(request))
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"{org.name} was created.")
            return redirect("console:org-home", org.slug)
    return render(request, "console/org_create.html", {"form": form}, status=form.status)
