"""The URLs of this package, under /api/v1/."""

from django.urls import path

from catalog import api

api_patterns = [
    path("catalog", api.Catalog.as_view(), name="api-catalog"),
    # A model id may contain a slash, as ids of other providers do.
    path("catalog/<path:model_id>", api.CatalogModel.as_view(), name="api-catalog-model"),
]
