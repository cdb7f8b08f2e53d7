"""The URLs of this package, under /api/v1/."""

from django.urls import path

from integrations import api

api_patterns = [
    path("providers", api.Providers.as_view(), name="api-providers"),
    path("integrations", api.Integrations.as_view(), name="api-integrations"),
    path("integrations/test", api.ConnectionTest.as_view(), name="api-connection-test"),
    path("integrations/<str:integration_id>", api.IntegrationDetail.as_view(), name="api-integration"),
    path("integrations/<str:integration_id>/test", api.IntegrationTest.as_view(), name="api-integration-test"),
    path("integrations/<str:integration_id>/rotate", api.IntegrationRotate.as_view(), name="api-integration-rotate"),
]
