"""The addresses of this room."""

from django.urls import path

from billing import api

api_patterns = [
    path("usage", api.UsageReport.as_view(), name="usage"),
    path("cost-events", api.CostEventList.as_view(), name="cost-events"),
    path("cost-events.csv", api.CostEventCsv.as_view(), name="cost-events-csv"),
    path("entitlements", api.Entitlements.as_view(), name="entitlements"),
]
