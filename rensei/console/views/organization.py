"""Settings → Organization: its name and logo letter; and the page that creates another one."""

import json

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from rensei.console.access import PageRequest, attempt, page, sensitive
from rensei.console.answers import confirm
from rensei.console.forms.organization import NewOrganizationForm, OrganizationForm
from rensei.core.errors import NotPermitted, RenseiError
from rensei.core.proxies import client_address
from rensei.dispatch import key_destruction, org_deletion
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
    context = {"form": form, "may_create": services.may_create_org(access.user), "is_owner": access.is_lasting_owner}
    return render(request, "console/organization.html", context, status=form.status)


@require_http_methods(["GET", "HEAD", "POST"])
@page
@sensitive
def destroy_keys(request: PageRequest) -> HttpResponse:
    """Ask an owner to type the organization's id, then destroy its data keys and show the receipt."""
    access = request.access
    access.require_lasting_owner()
    typed = request.POST.get("typed", "")
    if request.method == "POST" and typed == access.org.slug:
        return attempt(
            request,
            lambda: key_destruction.destroy_keys(access, confirm=typed),
            done="The keys were destroyed. This is the receipt.",
            back="destroyed-keys",
        )
    return confirm(
        request,
        title=f"Destroy the keys of {access.org.name}?",
        text="Every key that is stored for this organization becomes unreadable at once, for good. Its integrations "
        "stay, and fail until they get a new key. Calls under way end as they are. You get a signed receipt.",
        action="Destroy keys",
        section="Organization",
        back="organization",
        to_type=access.org.slug,
    )


@require_http_methods(["GET", "HEAD", "POST"])
@page
@sensitive
def delete(request: PageRequest) -> HttpResponse:
    """Ask an owner to type the organization's id, then delete it."""
    access = request.access
    access.require_lasting_owner()
    typed = request.POST.get("typed", "")
    if request.method == "POST" and typed == access.org.slug:
        org_deletion.delete_org(access, confirm=typed)
        messages.success(request, f"{access.org.name} was deleted.")
        has_others = services.memberships_of(access.user).exists()
        return redirect("console:home" if has_others else "console:org-create")
    return confirm(
        request,
        title=f"Delete {access.org.name}?",
        text="This cannot be undone, and ends all access at once. All members are told by mail.",
        items=org_deletion.CONSEQUENCES,
        action="Delete organization",
        section="Organization",
        back="organization",
        to_type=access.org.slug,
    )


@require_safe
@page
def destroyed_keys(request: PageRequest) -> HttpResponse:
    """Show the receipt of the latest destruction to owners, admins and auditors."""
    if not request.access.sees_everyone:
        raise NotPermitted
    receipt = key_destruction.latest_receipt(request.access)
    if receipt is not None and request.GET.get("format") == "json":
        name = f"destroyed-keys-{request.access.org.slug}.json"
        return JsonResponse(
            receipt, json_dumps_params={"indent": 2}, headers={"content-disposition": f'attachment; filename="{name}"'}
        )
    text = json.dumps(receipt, indent=2, ensure_ascii=False) if receipt else ""
    return render(request, "console/destroyed_keys.html", {"receipt": receipt, "text": text})


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
