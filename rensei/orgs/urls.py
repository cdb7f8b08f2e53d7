"""The addresses of organizations and projects, under /api/v1/."""

from django.urls import path

from rensei.orgs import api, audit_api

api_patterns = [
    path("audit-events", audit_api.AuditEvents.as_view(), name="api-audit-events"),
    path("me", api.Me.as_view(), name="api-me"),
    path("projects", api.Projects.as_view(), name="api-projects"),
    path("projects/<str:project_id>", api.ProjectDetail.as_view(), name="api-project"),
]
