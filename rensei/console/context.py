"""The context of every page's template."""

from typing import Any

from django.conf import settings
from django.db.models import QuerySet
from django.http import HttpRequest

from rensei.layout import MANAGE
from rensei.orgs.access import Access
from rensei.orgs.models import MANAGERS, Membership

THEMES = ("light", "dark", "system")


def console(request: HttpRequest) -> dict[str, Any]:
    theme = request.COOKIES.get("theme", "system")
    access: Access | None = getattr(request, "access", None)
    return {
        "access": access,
        "manage": MANAGE,
        "managers": _managers(access) if access else (),
        "simulated": settings.RENSEI_SIMULATED,
        "support_email": settings.RENSEI_SUPPORT_EMAIL,
        "theme": theme if theme in THEMES else "system",
    }


def _managers(access: Access) -> QuerySet[Any]:
    """The owners and admins. The query runs only on a page that names them."""
    return Membership.objects.for_org(access.org).filter(role__in=MANAGERS).select_related("user").order_by("id")
