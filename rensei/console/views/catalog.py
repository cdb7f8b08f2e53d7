"""Settings → Catalog: the models that profiles may name, what they can do and what they cost."""

from django import forms
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from catalog import identities, pricing, services
from catalog.models import CatalogEntry
from catalog.providers import REGISTRY
from profiles.services import profiles_naming
from rensei.console import snippets
from rensei.console.access import PageRequest, attempt, page
from rensei.console.answers import confirm, only
from rensei.console.forms.base import RefusableForm
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError


class EntryForm(RefusableForm):
    """A model that the catalog does not have yet."""

    provider = forms.ChoiceField(choices=lambda: [(spec.id, spec.display_name) for spec in REGISTRY.values()])
    model_id = forms.CharField(
        label="Model ID", max_length=128, widget=forms.TextInput(attrs={"class": "input--mono", "autocomplete": "off"})
    )
    display_name = forms.CharField(label="Display name", max_length=120)


@require_safe
@page
def catalog(request: PageRequest) -> HttpResponse:
    """List every model with its lifecycle and prices; retired ones are marked with what serves them."""
    now = database_now()
    wanted = request.GET.get("lifecycle", "")
    entries = list(CatalogEntry.objects.visible_to(request.access.org).order_by("-released_on", "display_name"))
    served = services.served_entries(entries, org=request.access.org, today=now.date())
    prices = pricing.price_lists(entries, moment=now)
    rows = [
        {
            "entry": entry,
            "lifecycle": entry.lifecycle_on(now.date()).value,
            "served": served[entry.pk],
            "price": prices[entry.pk].bands[0] if entry.pk in prices else None,
        }
        for entry in entries
    ]
    shown = [row for row in rows if wanted in ("", row["lifecycle"])]
    context = {"rows": shown, "wanted": wanted, "lifecycles": CatalogEntry.Lifecycle.choices}
    return render(request, "console/catalog.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def create(request: PageRequest) -> HttpResponse:
    """Add a model to the organization's own catalog."""
    request.access.require_manager()
    form = EntryForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            entry, created = services.create_entry(request.access, **form.cleaned_data)
        except RenseiError as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"{entry.model_id} {'was added' if created else 'is already in the catalog'}.")
            return redirect("console:catalog-entry", request.access.org.slug, entry.provider, entry.model_id)
    return render(request, "console/catalog_create.html", {"form": form}, status=form.status)


@require_safe
@page
def entry(request: PageRequest, provider: str, model_id: str) -> HttpResponse:
    """Show one model."""
    now = database_now()
    try:
        found = services.find_entry(
            org=request.access.org,
            provider=provider,
            model_id=model_id,
            may_create=services.may_create(request.access),
        )
    except services.ModelNotInCatalog as refusal:
        return render(request, "console/refused.html", {"refusal": refusal}, status=404)
    served = services.served_entries([found], org=request.access.org, today=now.date())[found.pk]
    context = {
        "entry": found,
        "served": served or found,
        "lifecycle": found.lifecycle_on(now.date()).value,
        "replaced": served is not None and served.pk != found.pk,
        "price_list": pricing.price_lists([found], moment=now).get(found.pk),
        "command": snippets.profile_command(found),
        "aliases": sorted(alias.name for alias in found.aliases.all()),
        "answered_by": identities.answered_by([found]).get(found.pk, ()),
    }
    return render(request, "console/catalog_entry.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@page
def delete(request: PageRequest, provider: str, model_id: str) -> HttpResponse:
    """Take a model that the organization has added out of its catalog."""
    access = request.access
    access.require_manager()
    found = only(CatalogEntry.objects.filter(org=access.org, provider=provider, model_id=model_id.replace("\0", "")))
    if request.method == "POST":
        return attempt(
            request,
            lambda: services.delete_entry(access, provider=provider, model_id=model_id),
            done=f"{found.model_id} was deleted.",
            back="catalog",
        )
    naming = profiles_naming(found, org=access.org)
    if naming:
        title, action = f"{found.display_name} is in use", ""
        text = "These profiles name it. Give them another model, or delete them, before you delete it:"
    else:
        title, action = f"Delete {found.display_name}?", "Delete"
        text = f"Calls that name {found.model_id} will be refused. Its past runs and costs stay."
    return confirm(request, title=title, text=text, action=action, items=naming, section="Catalog", back="catalog")
