"""The URLs of this package."""

from django.urls import path

from billing import api
from billing.statements import api as statements_api

api_patterns = [
    path("usage", api.UsageReport.as_view(), name="usage"),
    path("cost-events", api.CostEventList.as_view(), name="cost-events"),
    path("cost-events.csv", api.CostEventCsv.as_view(), name="cost-events-csv"),
    path("entitlements", api.Entitlements.as_view(), name="entitlements"),
    path("statements", statements_api.StatementList.as_view(), name="statements"),
    path("statements/<str:month>.csv", statements_api.StatementCsv.as_view(), name="statement-csv"),
    path("statements/<str:month>", statements_api.StatementDetail.as_view(), name="statement"),
]
