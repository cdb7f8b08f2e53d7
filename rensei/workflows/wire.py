"""The JSON form of workflows and workflow runs, in the API and in its OpenAPI document."""

from typing import Any

from django.db.models import Prefetch, prefetch_related_objects
from rest_framework import serializers

from rensei.core.api import CamelSerializer
from rensei.core.json_fields import JSONDocument, anything
from rensei.dispatch.wire import AgentResultAnswer, RunCostAnswer, RunErrorAnswer
from rensei.workflows.models import NodeRun, WorkflowRun

INPUT = {
    "description": "A text, or an object of named values",
    "oneOf": [{"type": "string"}, anything("The values that the workflow's nodes name.")],
}


class WorkflowAnswer(CamelSerializer):
    """The wire form of a workflow."""

    id = serializers.CharField()
    name = serializers.CharField()
    project_id = serializers.CharField(source="project.slug", allow_null=True)
    version = serializers.IntegerField()
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()


class VersionAnswer(CamelSerializer):
    """One version that a workflow has had."""

    version = serializers.IntegerField(source="number")
    created_at = serializers.DateTimeField()
    created_by = serializers.CharField(source="created_by.email", allow_null=True)


class WorkflowDetailAnswer(WorkflowAnswer):
    document = serializers.CharField(source="newest_document")
    versions = VersionAnswer(many=True, source="history")


class NodeAnswer(CamelSerializer):
    """The wire form of a node of a workflow run."""

    node_id = serializers.CharField()
    state = serializers.ChoiceField(choices=NodeRun.State.choices)
    run_id = serializers.CharField(allow_null=True)
    output = serializers.CharField(allow_null=True)
    agent = AgentResultAnswer(source="agent_result", allow_null=True)
    error = RunErrorAnswer(allow_null=True)
    cost = RunCostAnswer(allow_null=True)


class WorkflowRunAnswer(CamelSerializer):
    """The wire form of a workflow run."""

    id = serializers.CharField()
    workflow_id = serializers.CharField(source="version.workflow_id")
    workflow_name = serializers.CharField(source="version.workflow.name")
    version = serializers.IntegerField(source="version.number")
    state = serializers.ChoiceField(choices=WorkflowRun.State.choices)
    project_id = serializers.CharField(source="project.slug", allow_null=True)
    created_by = serializers.CharField(source="created_by.email", allow_null=True)
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)


class WorkflowRunDetailAnswer(WorkflowRunAnswer):
    input = JSONDocument("WorkflowInput", INPUT, allow_null=True)
    nodes = NodeAnswer(many=True)
    cost = RunCostAnswer()

    def to_representation(self, instance: WorkflowRun) -> dict[str, Any]:
        nodes = Prefetch("nodes", NodeRun.objects.select_related("run"))
        prefetch_related_objects([instance], nodes)
        return super().to_representation(instance)
