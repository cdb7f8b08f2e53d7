"""Every address of the server. Each package contributes its own lists."""

from django.contrib import admin
from django.contrib.auth.decorators import login_not_required
from django.urls import include, path
from django.views.generic import TemplateView

from billing import urls as billing
from catalog import urls as catalog
from integrations import urls as integrations
from profiles import urls as profiles
from rensei.accounts import urls as accounts
from rensei.console import urls as console
from rensei.core import error_pages
from rensei.core.views import Document
from rensei.dispatch import urls as dispatch
from rensei.operators import health
from rensei.orgs import urls as orgs
from rensei.policies import urls as policies
from rensei.tokens import urls as tokens
from rensei.workflows import urls as workflows

api_patterns = [
    *orgs.api_patterns,
    *tokens.api_patterns,
    *accounts.api_patterns,
    *policies.api_patterns,
    *catalog.api_patterns,
    *integrations.api_patterns,
    *profiles.api_patterns,
    *billing.api_patterns,
    *dispatch.api_patterns,
    *workflows.api_patterns,
    path("schema", Document.as_view(), name="schema"),
]
urlpatterns = [
    path("admin/", admin.site.urls),
    path("accounts/", include(accounts.account_patterns)),
    path("api/v1/", include(api_patterns)),
    path("api/docs", login_not_required(TemplateView.as_view(template_name="api_docs.html")), name="api-docs"),
    path("healthz", health.alive, name="healthz"),
    path("readyz", health.ready, name="readyz"),
    path("metrics", health.metrics, name="metrics"),
    *integrations.public_patterns,
    *accounts.page_patterns,
    *console.urlpatterns,
]

handler400 = error_pages.bad_request
handler403 = error_pages.not_permitted
handler404 = error_pages.not_found
handler500 = error_pages.server_error
