"""The request for metered, beside every METERED_NOT_ENTITLED on a page."""

from typing import Any

from django import template
from django.template import Context

from billing.limits import metered_requests

register = template.Library()


@register.inclusion_tag("console/_request_metered.html", takes_context=True)
def request_metered(context: Context, code: str) -> dict[str, Any]:
    """Offer a request for metered, or show since when it is open. Nothing for any other code."""
    access = context.get("access")
    if code != "METERED_NOT_ENTITLED" or access is None:
        return {}
    return {
        "request": context["request"],
        "access": access,
        "managers": context["managers"],
        "entitlement": metered_requests.entitlement_of(access.org),
    }
