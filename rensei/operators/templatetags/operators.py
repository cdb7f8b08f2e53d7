"""Additions to the stock admin for operators: the front page's figures, and links between objects."""

from typing import Any

from django import template
from django.db.models import Model
from django.urls import reverse
from django.utils.http import urlencode

from billing.models import CostEvent, Entitlement
from catalog.models import CatalogEntry
from integrations.models import Integration, PlatformKey
from rensei.dispatch.models import Run
from rensei.operators import overview as front_page
from rensei.operators import stoppable, unknown_names
from rensei.operators.overview import Overview
from rensei.orgs.models import KillSwitch, Org

register = template.Library()


@register.simple_tag
def overview() -> Overview:
    return front_page.overview()


@register.filter
def advice(kind: str) -> str:
    """Return what an operator does about an unknown name of this kind."""
    return unknown_names.advice_for(kind)


@register.simple_tag
def ways_from(thing: Model | None) -> list[tuple[str, str]]:
    """List the links from an object's page: the name and the address of each."""
    if isinstance(thing, Org):
        return _of_org(thing)
    if isinstance(thing, PlatformKey):
        return [("Runs of this key", _list("dispatch_run", credential_id=thing.pk))]
    if isinstance(thing, Integration):
        return [_org(thing.org), ("Runs of this key", _list("dispatch_run", credential_id=thing.pk))]
    if isinstance(thing, Entitlement):
        return [_org(thing.org), ("Ledger", _list("billing_costevent", q=thing.org.slug))]
    if isinstance(thing, CatalogEntry):
        return [("Prices", _list("catalog_price", q=thing.model_id))]
    if isinstance(thing, Run):
        return [_org(thing.org), ("Ledger lines", _list("billing_costevent", q=thing.pk)), *_key_of(thing)]
    if isinstance(thing, CostEvent):
        return [_org(thing.org), ("Run", reverse("admin:dispatch_run_change", args=[thing.run_id]))]
    return []


@register.simple_tag
def switch_of(thing: Model | None) -> dict[str, Any]:
    """Return what of an object can be stopped, or the kill switch that has stopped it. Empty if nothing can."""
    target = stoppable.of_object(thing)
    if target is None:
        return {}
    switch = KillSwitch.objects.filter(kind=target.kind, target=target.id).first()
    return {"target": target, "switch": switch}


def _of_org(org: Org) -> list[tuple[str, str]]:
    return [
        ("View as organization…", reverse("admin:orgs_org_view_as", args=[org.pk])),
        ("Entitlement", reverse("admin:billing_entitlement_change", args=[org.pk])),
        ("Runs", _list("dispatch_run", org__id__exact=org.pk)),
        ("Ledger", _list("billing_costevent", q=org.slug)),
        ("Keys", _list("integrations_integration", q=org.slug)),
        ("Audit log", _list("audit_auditevent", org=org.pk)),
    ]


def _org(org: Org) -> tuple[str, str]:
    return f"Organization {org.slug}", reverse("admin:orgs_org_change", args=[org.pk])


def _key_of(run: Run) -> list[tuple[str, str]]:
    for prefix, name in (("key_", "integrations_platformkey"), ("int_", "integrations_integration")):
        if run.credential_id.startswith(prefix):
            return [("Key that signed", reverse(f"admin:{name}_change", args=[run.credential_id]))]
    return []


def _list(name: str, **query: str) -> str:
    return f"{reverse(f'admin:{name}_changelist')}?{urlencode(query)}"
