"""Settings → Catalog: the models that profiles may name, their capabilities and prices."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import urlencode
from django.views.decorators.http import require_http_methods, require_safe

from catalog import identities, pricing, services
from catalog.models import CatalogEntry
from catalog.providers import PROVIDERS
from profiles.services import profiles_naming
from rensei.console import snippets
from rensei.console.access import PageRequest, attempt, page
from rensei.console.answers import confirm
from rensei.console.forms.base import RefusableForm
from rensei.console.sorting import in_order, sort_of
from rensei.core.clock import database_now
from rensei.core.effort import Effort
from rensei.core.errors import RenseiError


class EntryForm(RefusableForm):
    """A model that is not yet in the catalog."""

    provider = forms.ChoiceField(choices=lambda: [(spec.id, spec.display_name) for spec in PROVIDERS.values()])
    model_id = forms.CharField(
        label="Model ID", max_length=128, widget=forms.TextInput(attrs={"class": "input--mono", "autocomplete": "off"})
    )
    display_name = forms.CharField(label="Display name", max_length=120)


ALL = "all"
LEVELS = list(Effort.values)
# By heading. Models without a price or an effort come last.
SORTS = {"Model": "model", "Efforts": "efforts", "Price in": "input", "Price out": "output"}
SORT_KEYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "model": lambda row: row["entry"].display_name.casefold(),
    "efforts": lambda row: max((LEVELS.index(level) for level in row["entry"].effort_levels), default=None),
    "input": lambda row: row["price"].input if row["price"] else None,
    "output": lambda row: row["price"].output if row["price"] else None,
}


@require_safe
@page
def catalog(request: PageRequest) -> HttpResponse:
    """List the active models, or those that the query selects, with prices; retired ones with their replacements."""
    now = database_now()
    wanted = request.GET.get("lifecycle", CatalogEntry.Lifecycle.ACTIVE.value)
    order = request.GET.get("sort", "")
    entries = list(services.visible_entries(request.access).order_by("-released_on", "display_name"))
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
    shown = [row for row in rows if wanted in (ALL, row["lifecycle"])]
    if key := SORT_KEYS.get(order.removeprefix("-")):
        shown = in_order(shown, key=key, descending=order.startswith("-"))
    choices = [*CatalogEntry.Lifecycle.choices, (ALL, "All")]
    context = {
        "rows": shown,
        "filters": [
            {"label": label, "chosen": value == wanted, "link": f"?{_query(value, order)}"} for value, label in choices
        ],
        "sorts": {
            label: sort_of(name, order, link=lambda sort: f"?{_query(wanted, sort)}") for label, name in SORTS.items()
        },
    }
    return render(request, "console/catalog.html", context)


def _query(lifecycle: str, sort: str) -> str:
    return urlencode({"lifecycle": lifecycle, **({"sort": sort} if sort else {})})


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
    """Delete a model that the organization has added to its catalog."""
    access = request.access
    access.require_manager()
    found = services.visible_entries(access).get_or_404(org=access.org, provider=provider, model_id=model_id)
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
