"""REST endpoints to apply workflow documents, run them, read the results, and cancel."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from rensei.core.api import CamelSerializer, CursorPages, query_of
from rensei.core.errors import AlreadyExists, InUse, NotFound
from rensei.core.json_fields import NOT_BLANK, JSONDocument, anything
from rensei.dispatch.admission.admit import IdempotencyKeyReused
from rensei.dispatch.api.runs import IDEMPOTENCY_KEY, idempotency_key
from rensei.dispatch.wire import RunCostSchema, RunErrorSchema
from rensei.orgs.access import caller
from rensei.orgs.permissions import MembersRead, MembersWrite
from rensei.orgs.scopes import MANAGE, READ_OR_RUNS, RUNS
from rensei.orgs.storage import StorageLimitReached
from rensei.workflows import presenters, services
from rensei.workflows.models import NodeRun, Workflow, WorkflowRun
from rensei.workflows.reading import WorkflowInvalid

DOCUMENT = {
    "description": "A text in YAML or JSON, or the object itself, as docs/workflows describes it",
    "oneOf": [
        {"type": "string", "pattern": NOT_BLANK},
        anything("A workflow with its nodes, or a bare node."),
    ],
}
INPUT = {
    "description": "A text, or an object of named values",
    "oneOf": [{"type": "string"}, anything("The values that the workflow's nodes name.")],
}


class DocumentBody(CamelSerializer):
    """A document: a text in YAML or JSON, or the object itself."""

    document = JSONDocument("WorkflowDocument", DOCUMENT)

    def validate_document(self, value: Any) -> str | dict[str, Any]:
        if isinstance(value, str | dict):
            return value
        raise serializers.ValidationError("A document is a text in YAML or JSON, or an object.")


class ApplyBody(DocumentBody):
    """A document, and the project that its workflow belongs to; without one, it is the whole organization's."""

    project_id = serializers.CharField(required=False, allow_null=True, max_length=63)


class StartBody(CamelSerializer):
    """What the workflow is given: a text, or an object of named values."""

    input = JSONDocument("WorkflowInput", INPUT, required=False, allow_null=True)

    def validate_input(self, value: Any) -> Any:
        if value is None or isinstance(value, str | dict):
            return value
        raise serializers.ValidationError("An input is a text, or an object of named values.")


class WorkflowSchema(CamelSerializer):
    """The wire form of a workflow."""

    id = serializers.CharField()
    name = serializers.CharField()
    project_id = serializers.CharField(allow_null=True)
    version = serializers.IntegerField()
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()


class VersionSchema(CamelSerializer):
    """One version that a workflow has had."""

    version = serializers.IntegerField()
    created_at = serializers.DateTimeField()
    created_by = serializers.CharField(allow_null=True)


class WorkflowDetailSchema(WorkflowSchema):
    document = serializers.CharField()
    versions = VersionSchema(many=True)


class NodeSchema(CamelSerializer):
    """The wire form of a node of a workflow run."""

    node_id = serializers.CharField()
    state = serializers.ChoiceField(choices=NodeRun.State.choices)
    run_id = serializers.CharField(allow_null=True)
    output = serializers.CharField(allow_null=True)
    error = RunErrorSchema(allow_null=True)
    cost = RunCostSchema(allow_null=True)


class WorkflowRunSchema(CamelSerializer):
    """The wire form of a workflow run."""

    id = serializers.CharField()
    workflow_id = serializers.CharField()
    workflow_name = serializers.CharField()
    version = serializers.IntegerField()
    state = serializers.ChoiceField(choices=WorkflowRun.State.choices)
    project_id = serializers.CharField(allow_null=True)
    created_by = serializers.CharField(allow_null=True)
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)


class WorkflowRunDetailSchema(WorkflowRunSchema):
    input = JSONDocument("WorkflowInput", INPUT, allow_null=True)
    nodes = NodeSchema(many=True)
    cost = RunCostSchema()


class WorkflowAnswer(serializers.Serializer[Workflow]):
    """A workflow as lists show it."""

    def to_representation(self, instance: Workflow) -> dict[str, Any]:
        return presenters.workflow_body(instance)


class WorkflowRunAnswer(serializers.Serializer[WorkflowRun]):
    """A workflow run as lists show it."""

    def to_representation(self, instance: WorkflowRun) -> dict[str, Any]:
        return presenters.workflow_run_body(instance)


class Workflows(APIView):
    """The workflows of the organization, newest first; a POST applies a document."""

    permission_classes = [MembersWrite]
    scopes = {"GET": READ_OR_RUNS, "POST": MANAGE}
    refusals = {"POST": (NotFound, AlreadyExists, WorkflowInvalid, StorageLimitReached)}
    pagination_class = CursorPages
    Body = ApplyBody

    @extend_schema(
        responses=WorkflowSchema(many=True),
        parameters=[OpenApiParameter("name", str), OpenApiParameter("projectId", str)],
    )
    def get(self, request: Request) -> Response:
        """List the workflows of the organization, newest first."""
        found = services.visible_workflows(caller(request))
        if name := query_of(request).get("name"):
            found = found.filter(name=name.replace("\0", ""))
        if project_id := query_of(request).get("projectId"):
            found = found.filter(project__slug=project_id.replace("\0", ""))
        return CursorPages.answer(request, found, WorkflowAnswer)

    @extend_schema(request=ApplyBody, responses={201: WorkflowDetailSchema, 200: WorkflowDetailSchema})
    def post(self, request: Request) -> Response:
        """Apply a workflow document: it makes the workflow, or adds a version to it."""
        body = ApplyBody(data=request.data)
        body.is_valid(raise_exception=True)
        workflow, created = services.apply_document(
            caller(request), body.validated_data["document"], project_id=body.validated_data.get("project_id")
        )
        return Response(
            presenters.workflow_detail(workflow),
            status=status.HTTP_201_CREATED if created else status.HTTP_200_OK,
            headers={"Location": f"/api/v1/workflows/{workflow.id}"} if created else {},
        )


class WorkflowDetail(APIView):
    """One workflow: its document and its versions. A PUT gives it a new document, and perhaps a new name."""

    permission_classes = [MembersWrite]
    scopes = {"GET": READ_OR_RUNS, "PUT": MANAGE, "DELETE": MANAGE}
    refusals = {"PUT": (AlreadyExists, WorkflowInvalid, StorageLimitReached), "DELETE": (InUse,)}
    Body = DocumentBody

    @extend_schema(responses=WorkflowDetailSchema)
    def get(self, request: Request, workflow_id: str) -> Response:
        """Show one workflow, with its document and versions."""
        return Response(presenters.workflow_detail(services.find_workflow(caller(request), workflow_id)))

    @extend_schema(request=DocumentBody, responses=WorkflowDetailSchema)
    def put(self, request: Request, workflow_id: str) -> Response:
        """Give a workflow a new document, and perhaps a new name."""
        workflow = services.find_workflow(caller(request), workflow_id)
        body = DocumentBody(data=request.data)
        body.is_valid(raise_exception=True)
        changed = services.change_document(caller(request), workflow, body.validated_data["document"])
        return Response(presenters.workflow_detail(changed))

    @extend_schema(responses={204: None})
    def delete(self, request: Request, workflow_id: str) -> Response:
        """Delete a workflow with its versions and workflow runs. The runs of its nodes stay."""
        services.delete_workflow(caller(request), services.find_workflow(caller(request), workflow_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class WorkflowRuns(APIView):
    """The runs of one workflow, newest first; a POST runs its newest version."""

    permission_classes = [MembersWrite]
    scopes = {"GET": READ_OR_RUNS, "POST": RUNS}
    refusals = {"POST": (services.InputRequired, IdempotencyKeyReused, StorageLimitReached)}
    pagination_class = CursorPages
    Body = StartBody

    @extend_schema(responses=WorkflowRunSchema(many=True))
    def get(self, request: Request, workflow_id: str) -> Response:
        """List the workflow runs of one workflow, newest first."""
        workflow = services.find_workflow(caller(request), workflow_id)
        found = services.visible_workflow_runs(caller(request)).filter(version__workflow=workflow)
        return CursorPages.answer(request, services.listed(found), WorkflowRunAnswer)

    @extend_schema(
        request=StartBody,
        responses={202: WorkflowRunDetailSchema, 200: WorkflowRunDetailSchema},
        parameters=[
            IDEMPOTENCY_KEY,
            OpenApiParameter("Prefer", str, OpenApiParameter.HEADER, description="wait=N, at most 60 seconds"),
        ],
    )
    def post(self, request: Request, workflow_id: str) -> Response:
        """Run the newest version of a workflow. With `Prefer: wait=N` the answer is the ended workflow run."""
        workflow = services.find_workflow(caller(request), workflow_id)
        key = idempotency_key(request)
        body = StartBody(data=request.data)
        body.is_valid(raise_exception=True)
        given = body.validated_data.get("input")
        workflow_run = services.start(caller(request), workflow, given=given, idempotency_key=key)
        return Response(
            presenters.workflow_run_detail(workflow_run),
            status=status.HTTP_202_ACCEPTED,
            headers={"Location": f"/api/v1/workflow-runs/{workflow_run.id}"},
        )


class WorkflowRunDetail(APIView):
    """One workflow run, with the state and the output of each node."""

    permission_classes = [MembersRead]
    scopes = {"GET": READ_OR_RUNS}

    @extend_schema(responses=WorkflowRunDetailSchema)
    def get(self, request: Request, workflow_run_id: str) -> Response:
        """Show one workflow run, with the state and output of each node."""
        found = services.find_workflow_run(caller(request), workflow_run_id)
        return Response(presenters.workflow_run_detail(found))


class WorkflowRunCancel(APIView):
    """Cancel a workflow run: what waits is not run, what runs is cancelled."""

    permission_classes = [MembersWrite]
    scopes = {"POST": RUNS}
    refusals = {"POST": (services.WorkflowRunNotCancellable,)}

    @extend_schema(request=None, responses=WorkflowRunDetailSchema)
    def post(self, request: Request, workflow_run_id: str) -> Response:
        """Cancel a workflow run: nodes that wait are not run, and those that run are cancelled."""
        found = services.find_workflow_run(caller(request), workflow_run_id)
        return Response(presenters.workflow_run_detail(services.cancel(caller(request), found)))
