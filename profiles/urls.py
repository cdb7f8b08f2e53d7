"""The URLs of this package, under /api/v1/."""

from django.urls import path

from profiles import api

api_patterns = [
    path("profiles", api.Profiles.as_view(), name="api-profiles"),
    path("profiles/<str:profile_id>", api.ProfileDetail.as_view(), name="api-profile"),
]
