"""The addresses of this room, under /api/v1/."""

from django.urls import path

from rensei.dispatch import access_api, api, leases_api, live

api_patterns = [
    path("runs", live.runs, name="api-runs"),
    path("runs/<str:run_id>", api.RunDetail.as_view(), name="api-run"),
    path("runs/<str:run_id>/events", live.Events.as_view(), name="api-run-events"),
    path("runs/<str:run_id>/cancel", api.RunCancel.as_view(), name="api-run-cancel"),
    path("hosts/<str:host_id>/lease", live.lease, name="api-host-lease"),
    path("runs/<str:run_id>/lease/heartbeat", leases_api.LeaseHeartbeat.as_view(), name="api-lease-heartbeat"),
    path("runs/<str:run_id>/lease/chunks", leases_api.LeaseChunks.as_view(), name="api-lease-chunks"),
    path("runs/<str:run_id>/lease/finish", leases_api.LeaseFinish.as_view(), name="api-lease-finish"),
    path("profiles/<str:profile_id>/resolve", api.Resolve.as_view(), name="api-profile-resolve"),
    path("access-policy", access_api.OrgPolicy.as_view(), name="api-access-policy"),
    path("access-policy/preview", access_api.OrgPolicyPreview.as_view(), name="api-access-policy-preview"),
    path("projects/<str:project_id>/access-policy", access_api.ProjectPolicy.as_view(), name="api-project-policy"),
    path(
        "projects/<str:project_id>/access-policy/preview",
        access_api.ProjectPolicyPreview.as_view(),
        name="api-project-policy-preview",
    ),
    path("pools", access_api.Pools.as_view(), name="api-pools"),
    path("pools/<str:pool_id>", access_api.PoolDetail.as_view(), name="api-pool"),
]
