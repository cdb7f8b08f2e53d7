"""The addresses of access policies, under /api/v1/."""

from django.urls import path

from rensei.policies import api

api_patterns = [
    path("access-policy", api.OrgPolicy.as_view(), name="api-access-policy"),
    path("projects/<str:project_id>/access-policy", api.ProjectPolicy.as_view(), name="api-project-policy"),
]
