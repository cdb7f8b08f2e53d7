"""The context of every page's template."""

from typing import Any

from django.conf import settings
from django.db.models import QuerySet
from django.http import HttpRequest

from rensei.layout import MANAGE
from rensei.orgs.access import Access
from rensei.orgs.models import MANAGERS
from rensei.orgs.services import members

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
    return members(access).filter(role__in=MANAGERS).order_by("id")
