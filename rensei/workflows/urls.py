"""The URLs of this package, under /api/v1/."""

from django.urls import path

from rensei.workflows import api, live

api_patterns = [
    path("workflows", api.Workflows.as_view(), name="api-workflows"),
    path("workflows/<str:workflow_id>", api.WorkflowDetail.as_view(), name="api-workflow"),
    path("workflows/<str:workflow_id>/runs", live.workflow_runs, name="api-workflow-runs"),
    path("workflow-runs/<str:workflow_run_id>", api.WorkflowRunDetail.as_view(), name="api-workflow-run"),
    path("workflow-runs/<str:workflow_run_id>/cancel", api.WorkflowRunCancel.as_view(), name="api-workflow-run-cancel"),
    path("workflow-runs/<str:workflow_run_id>/retry", api.WorkflowRunRetry.as_view(), name="api-workflow-run-retry"),
]
