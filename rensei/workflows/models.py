"""Workflows, the versions of their documents, and the results of each workflow run."""

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from rensei.core.errors import StoredError
from rensei.core.ids import PublicIdField
from rensei.dispatch.models import Run
from rensei.orgs.models import Host, Org, OrgScopedQuerySet, Project


class Workflow(models.Model):
    """A document with a name. `version` is the number of its newest version, which is the version that runs."""

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

    @property
    def newest_document(self) -> str:
        return self.versions.values_list("document", flat=True).get(number=self.version)

    @property
    def history(self) -> "models.QuerySet[WorkflowVersion]":
        """All versions without their documents, newest first."""
        return self.versions.select_related("created_by").defer("document", "nodes").order_by("-number")


class WorkflowVersion(models.Model):
    """
    The content of a workflow's document from a moment on. Versions are added, never changed.

    `document` is the text as it was sent. `nodes` is what was read from it, sorted so that each node comes
    after those that it needs.
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
    One execution of a workflow, for the member who started it.

    `changes` counts the events that may allow progress, and `advanced` how many of them have been processed,
    so a crash in between leaves work that is found later. The lease prevents concurrent processing.
    """

    State = Run.State
    ENDED = Run.ENDED

    id = PublicIdField(prefix="wfr")
    org = models.ForeignKey(Org, models.CASCADE, related_name="workflow_runs")
    version = models.ForeignKey(WorkflowVersion, models.CASCADE, related_name="runs")
    project = models.ForeignKey(Project, models.SET_NULL, null=True, related_name="+")
    bound_to_project = models.BooleanField(default=False)
    host = models.ForeignKey(Host, models.SET_NULL, null=True, related_name="+")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    # The ids of the caps of the token that started it, which hold for the runs of its nodes.
    caps = models.JSONField(default=list, db_default=models.Value([], models.JSONField()))
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

    @property
    def cost(self) -> dict[str, Any]:
        """What the runs of the nodes cost together, without the reused ones, in the names of a run's fields."""
        return _cost_of([node.run for node in self.nodes.all() if node.run is not None and not node.reused])


class NodeRun(models.Model):
    """
    One node of one workflow run. Output and cost are those of its run; `error` states why there is no run.

    A `reused` node has the run of an earlier workflow run, which has paid for it.
    """

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
    run = models.ForeignKey(Run, models.SET_NULL, null=True, related_name="+")
    reused = models.BooleanField(default=False)
    error: "models.JSONField[StoredError | None, StoredError | None]" = models.JSONField(null=True)

    class Meta:
        ordering = ["position"]
        constraints = [
            models.UniqueConstraint(fields=["workflow_run", "node_id"], name="node_in_workflow_run"),
            models.UniqueConstraint(fields=["run"], condition=Q(reused=False), name="node_of_run"),
        ]

    def __str__(self) -> str:
        return f"{self.workflow_run_id} {self.node_id}"

    @property
    def output(self) -> str | None:
        return self.run.output_text if self.run and self.state == self.State.SUCCEEDED else None

    @property
    def agent_result(self) -> dict[str, Any] | None:
        """What the program of an agent has left, however it ended."""
        return self.run.agent_result if self.run else None

    @property
    def cost(self) -> dict[str, Any] | None:
        """What its run cost, in the names of a run's fields. Nothing yet while the run has not ended."""
        return _cost_of([self.run]) if self.run else None


def _cost_of(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "amount_picodollars": total_cost(runs),
        "billed": any(run.billed for run in runs),
        "estimated": any(run.estimated for run in runs),
    }


def total_cost(runs: Sequence[Run]) -> int | None:
    """Add up what the nodes' runs have cost so far. None if any price is unknown."""
    # A run that never reached a provider has no amount, and no cost.
    amounts = [run.amount_picodollars for run in runs if run.attempt_count and run.state in Run.ENDED]
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None
