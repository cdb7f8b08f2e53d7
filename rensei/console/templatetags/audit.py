"""Template tags for audit events."""

import json
from typing import Any

from django import template
from django.urls import reverse

from rensei.audit.models import AuditEvent
from rensei.orgs.models import Org

register = template.Library()
# The page of an object, by the noun of its actions. Other objects have no page of their own.
PAGES = {"run": "run", "profile": "profile", "project": "project-access", "workflow": "workflow"}


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
def object_page(event: AuditEvent, org: Org) -> str:
    """The address of the object's page, if it has one and was not deleted by this event."""
    noun, _, verb = event.action.partition(".")
    name = PAGES.get(noun)
    return "" if name is None or verb == "deleted" else reverse(f"console:{name}", args=[org.slug, event.object_id])


@register.filter
def facts(event: AuditEvent) -> list[tuple[str, str]]:
    """The details of an event besides its object, each with its label."""
    found = [(key.replace("_", " "), _text(value)) for key, value in event.detail.items()]
    return [(label, text) for label, text in found if text]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
