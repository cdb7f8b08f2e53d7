"""Template tags for audit events."""

import json
from collections.abc import Collection
from typing import Any

from django import template
from django.urls import reverse

from rensei.audit.models import AuditEvent
from rensei.orgs.models import Org

register = template.Library()
# The pages that an object may have, by the noun of its actions. Other objects have no page of their own.
PAGES = {
    "run": ("run",),
    "profile": ("profile",),
    "project": ("project-access",),
    "workflow": ("workflow", "workflow-run"),
}


@register.filter
def action_label(action: str) -> str:
    """Write `platform_key.replaced` for people: Platform key replaced."""
    noun, _, verb = action.partition(".")
    noun = "organization" if noun == "org" else noun
    return f"{noun} {verb}".replace("_", " ").replace("-", " ").capitalize()


@register.filter
def object_name(event: AuditEvent) -> str:
    """The name of the object, where the event has stored it."""
    name = event.detail.get("name") or event.detail.get("email")
    return name if isinstance(name, str) else ""


@register.simple_tag
def object_page(event: AuditEvent, org: Org, present: Collection[tuple[str, str]]) -> str:
    """
    The address of the object's page; empty if it has none, or was deleted.

    `present` holds the objects that exist, each with the name of its page.
    """
    noun, _, _ = event.action.partition(".")
    for name in PAGES.get(noun, ()):
        if (name, event.object_id) in present:
            return reverse(f"console:{name}", args=[org.slug, event.object_id])
    return ""


@register.filter
def facts(event: AuditEvent) -> list[tuple[str, str]]:
    """The details of an event besides its object, each with its label."""
    found = [(key.replace("_", " "), _text(value)) for key, value in event.detail.items()]
    return [(label, text) for label, text in found if text]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
