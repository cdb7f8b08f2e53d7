"""Workflows, the versions of their documents, and what came of each time one was run."""

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from rensei.core.errors import StoredError
from rensei.core.ids import PublicIdField
from rensei.dispatch.models import Run
from rensei.orgs.models import Host, Org, OrgScopedQuerySet, Project


class Workflow(models.Model):
    """A document with a name. `version` is the number of its newest version, which is the one that is run."""

    id = PublicIdField(prefix="wf")
    org = models.ForeignKey(Org, models.CASCADE, related_name="workflows")
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="workflows")
    name = models.CharField(max_length=63)
    version = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["org", "name"], name="workflow_name_in_org")]

    def __str__(self) -> str:
        return self.name


class WorkflowVersion(models.Model):
    """
    What a workflow's document said from a moment on. Versions are added, never changed.

    `document` is the text as it was sent; `nodes` is what was read from it, in an order in which each
    node comes after those that it needs.
    """

    workflow = models.ForeignKey(Workflow, models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    document = models.TextField()
    nodes = models.JSONField()
    stored_bytes = models.PositiveBigIntegerField(default=0)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["workflow", "number"], name="version_number_in_workflow")]

    def __str__(self) -> str:
        return f"{self.workflow_id} v{self.number}"


class WorkflowRun(models.Model):
    """
    One time that a workflow is run, for the member who started it.

    `changes` counts what has happened that may let it go on, and `advanced` how much of it has been looked
    at, so a crash between the two leaves work that can be found. The lease keeps two from advancing it at once.
    """

    class State(models.TextChoices):
        QUEUED = "QUEUED", "Queued"
        RUNNING = "RUNNING", "Running"
        SUCCEEDED = "SUCCEEDED", "Succeeded"
        FAILED = "FAILED", "Failed"
        CANCELLED = "CANCELLED", "Cancelled"

    ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

    id = PublicIdField(prefix="wfr")
    org = models.ForeignKey(Org, models.CASCADE, related_name="workflow_runs")
    version = models.ForeignKey(WorkflowVersion, models.CASCADE, related_name="runs")
    project = models.ForeignKey(Project, models.SET_NULL, null=True, related_name="+")
    bound_to_project = models.BooleanField(default=False)
    host = models.ForeignKey(Host, models.SET_NULL, null=True, related_name="+")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    input = models.JSONField(null=True)
    stored_bytes = models.PositiveBigIntegerField(default=0)
    state = models.CharField(max_length=16, choices=State.choices, default=State.QUEUED)
    cancel_requested_at = models.DateTimeField(null=True)
    cancelled_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    changes = models.PositiveIntegerField(default=1)
    advanced = models.PositiveIntegerField(default=0)
    leased_until = models.DateTimeField(null=True)
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["org", "-id"], name="workflow_run_by_org"),
            models.Index(fields=["id"], condition=Q(changes__gt=F("advanced")), name="workflow_run_due"),
        ]

    def __str__(self) -> str:
        return str(self.id)


class NodeRun(models.Model):
    """One node of one workflow run. What it wrote and what it cost is its run's; `error` says why there is none."""

    class State(models.TextChoices):
        PENDING = "PENDING", "Waiting"
        RUNNING = "RUNNING", "Running"
        SUCCEEDED = "SUCCEEDED", "Succeeded"
        FAILED = "FAILED", "Failed"
        SKIPPED = "SKIPPED", "Skipped"
        CANCELLED = "CANCELLED", "Cancelled"

    workflow_run = models.ForeignKey(WorkflowRun, models.CASCADE, related_name="nodes")
    position = models.PositiveSmallIntegerField()
    node_id = models.CharField(max_length=63)
    state = models.CharField(max_length=16, choices=State.choices, default=State.PENDING)
    run = models.OneToOneField(Run, models.SET_NULL, null=True, related_name="+")
    error: "models.JSONField[StoredError | None, StoredError | None]" = models.JSONField(null=True)

    class Meta:
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["workflow_run", "node_id"], name="node_in_workflow_run")]

    def __str__(self) -> str:
        return f"{self.workflow_run_id} {self.node_id}"
