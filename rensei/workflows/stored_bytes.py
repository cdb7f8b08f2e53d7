"""The number of bytes that workflows store: their documents and inputs."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from django.db.models import Sum
from django.db.models.functions import Coalesce

from rensei.orgs import storage
from rensei.workflows.documents import Document
from rensei.workflows.models import Workflow, WorkflowRun, WorkflowVersion

# An upper bound of the row of a node of a workflow run.
NODE_BYTES = 512


def of_document(read: Document) -> int:
    return storage.ROW_BYTES + storage.size_of(read.source.text, [node.as_dict() for node in read.nodes])


def of_workflow_run(given: Any, *, nodes: int) -> int:
    return storage.ROW_BYTES + NODE_BYTES * nodes + storage.size_of(given)


def let_go(*, instance: Workflow, **_signal: object) -> None:
    """Release the bytes that a workflow stored, before it is deleted, by itself or with its project."""
    versions = WorkflowVersion.objects.filter(workflow=instance)
    runs = WorkflowRun.objects.filter(version__workflow=instance)
    stored = sum(each.aggregate(bytes=Coalesce(Sum("stored_bytes"), 0))["bytes"] for each in (versions, runs))
    storage.change({instance.org_id: (-stored, 0)})


def by_org() -> Mapping[str, tuple[int, int]]:
    """Return the stored bytes of each organization's workflows."""
    found: Counter[str] = Counter()
    versions = WorkflowVersion.objects.values_list("workflow__org_id")
    for sums in (versions, WorkflowRun.objects.values_list("org_id")):
        for org_id, used in sums.annotate(Sum("stored_bytes")):
            found[org_id] += used
    return {org_id: (used, 0) for org_id, used in found.items()}
