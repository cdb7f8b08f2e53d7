"""The URLs of this package: those under /api/v1/, and the two that every OIDC issuer has."""

from django.contrib.auth.decorators import login_not_required
from django.urls import path

from integrations import api, issuer_pages
from integrations.vault import issuer

api_patterns = [
    path("providers", api.Providers.as_view(), name="api-providers"),
    path("providers/<str:provider>/identity", api.ProviderIdentity.as_view(), name="api-provider-identity"),
    path("integrations", api.Integrations.as_view(), name="api-integrations"),
    path("integrations/test", api.ConnectionTest.as_view(), name="api-connection-test"),
    path("integrations/<str:integration_id>", api.IntegrationDetail.as_view(), name="api-integration"),
    path("integrations/<str:integration_id>/test", api.IntegrationTest.as_view(), name="api-integration-test"),
    path("integrations/<str:integration_id>/rotate", api.IntegrationRotate.as_view(), name="api-integration-rotate"),
]
public_patterns = [
    path(issuer.DISCOVERY_PATH.lstrip("/"), login_not_required(issuer_pages.discovery), name="issuer-discovery"),
    path(issuer.KEYS_PATH.lstrip("/"), login_not_required(issuer_pages.keys), name="issuer-keys"),
]
