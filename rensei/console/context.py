"""What every page's template may use."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest


def console(request: HttpRequest) -> dict[str, Any]:
    return {"simulated": settings.RENSEI_SIMULATED, "support_email": settings.RENSEI_SUPPORT_EMAIL}
