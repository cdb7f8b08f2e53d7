"""The URLs of this package, under /api/v1/."""

from django.urls import path

from rensei.dispatch.api import (
    agents,
    capacity,
    destroyed_keys,
    events,
    explanations,
    org_deletion,
    policy_previews,
    pools,
    receipts,
    runs,
)
from rensei.dispatch.host_sessions import api as leases_api

api_patterns = [
    path("runs", events.runs, name="api-runs"),
    path("runs/<str:run_id>", runs.RunDetail.as_view(), name="api-run"),
    path("runs/<str:run_id>/receipt", receipts.RunReceipt.as_view(), name="api-run-receipt"),
    path("receipt-keys", receipts.ReceiptKeys.as_view(), name="api-receipt-keys"),
    path("data-keys/destroy", destroyed_keys.DestroyKeys.as_view(), name="api-data-keys-destroy"),
    path("orgs/<str:org_id>", org_deletion.OrgDetail.as_view(), name="api-org"),
    path("runs/<str:run_id>/events", events.Events.as_view(), name="api-run-events"),
    path("runs/<str:run_id>/calls", agents.RunCalls.as_view(), name="api-run-calls"),
    path("runs/<str:run_id>/files/<str:file_id>", agents.RunFileContent.as_view(), name="api-run-file"),
    path("runs/<str:run_id>/cancel", runs.RunCancel.as_view(), name="api-run-cancel"),
    path("hosts/<str:host_id>/lease", events.lease, name="api-host-lease"),
    path("runs/<str:run_id>/lease/heartbeat", leases_api.LeaseHeartbeat.as_view(), name="api-lease-heartbeat"),
    path("runs/<str:run_id>/lease/chunks", leases_api.LeaseChunks.as_view(), name="api-lease-chunks"),
    path("runs/<str:run_id>/lease/finish", leases_api.LeaseFinish.as_view(), name="api-lease-finish"),
    path("profiles/<str:profile_id>/resolve", runs.Resolve.as_view(), name="api-profile-resolve"),
    path("why", explanations.Explanations.as_view(), name="api-why"),
    path("access-policy/preview", policy_previews.OrgPolicyPreview.as_view(), name="api-access-policy-preview"),
    path(
        "projects/<str:project_id>/access-policy/preview",
        policy_previews.ProjectPolicyPreview.as_view(),
        name="api-project-policy-preview",
    ),
    path("capacity", capacity.Capacity.as_view(), name="api-capacity"),
    path("capacity/cost", capacity.CapacityCost.as_view(), name="api-capacity-cost"),
    path("projects/<str:project_id>/pool", pools.ProjectPool.as_view(), name="api-project-pool"),
    path("pools", pools.Pools.as_view(), name="api-pools"),
    path("pools/<str:pool_id>", pools.PoolDetail.as_view(), name="api-pool"),
]
