"""Every address of the server. Each room contributes its own lists."""

import importlib
from typing import Any

from allauth.account.decorators import secure_admin_login
from django.contrib import admin
from django.contrib.auth.decorators import login_not_required
from django.urls import include, path
from django.views.generic import TemplateView
from drf_spectacular.views import SpectacularJSONAPIView

from rensei.console import health
from rensei.core import error_pages
from rensei.orgs.urls import page_patterns as orgs_pages

# Operators sign in at the same door as everyone, with its rate limits.
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]


def _patterns(module: str, name: str) -> list[Any]:
    try:
        return list(getattr(importlib.import_module(module), name))
    except ModuleNotFoundError as fault:
        if fault.name and (module == fault.name or module.startswith(fault.name + ".")):
            return []
        raise


api_patterns = [
    *_patterns("rensei.orgs.urls", "api_patterns"),
    *_patterns("catalog.urls", "api_patterns"),
    *_patterns("integrations.urls", "api_patterns"),
    *_patterns("profiles.urls", "api_patterns"),
    *_patterns("billing.urls", "api_patterns"),
    *_patterns("rensei.dispatch.urls", "api_patterns"),
    # Open to everyone, and the same for everyone: the schema tells what there is, not what anyone has.
    path("schema", SpectacularJSONAPIView.as_view(authentication_classes=[]), name="schema"),
]
urlpatterns = [
    path("admin/", admin.site.urls),
    path("accounts/", include("allauth.account.urls")),
    path("api/v1/", include(api_patterns)),
    path("api/docs", login_not_required(TemplateView.as_view(template_name="api_docs.html")), name="api-docs"),
    path("healthz", health.alive, name="healthz"),
    path("readyz", health.ready, name="readyz"),
    path("metrics", health.metrics, name="metrics"),
    *orgs_pages,
    *_patterns("rensei.console.urls", "urlpatterns"),
]

handler400 = error_pages.bad_request
handler403 = error_pages.not_permitted
handler404 = error_pages.not_found
handler500 = error_pages.server_error
