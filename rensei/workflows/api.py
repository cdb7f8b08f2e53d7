"""REST endpoints to apply workflow documents, run them, read the results, and cancel."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from integrations.vault.errors import CredentialUnreadable
from rensei.core.api import CamelSerializer, read_body
from rensei.core.errors import AlreadyExists, InUse, NotFound, named_in
from rensei.core.json_fields import NOT_BLANK, JSONDocument, anything
from rensei.core.lists import Filters
from rensei.core.views import Endpoint
from rensei.dispatch.api.runs import IDEMPOTENCY_KEY, idempotency_key
from rensei.dispatch.idempotency import IdempotencyKeyReused
from rensei.orgs.access import Access, caller
from rensei.orgs.models import OrgScopedQuerySet
from rensei.orgs.permissions import MembersRead, MembersWrite
from rensei.orgs.resources import Listed, Removed, Shown
from rensei.orgs.row_limits import LimitReached
from rensei.orgs.scopes import MANAGE, READ_OR_RUNS, RUNS
from rensei.orgs.storage import StorageLimitReached
from rensei.workflows import services
from rensei.workflows.models import WorkflowRun
from rensei.workflows.reading import WorkflowInvalid
from rensei.workflows.wire import (
    INPUT,
    WorkflowAnswer,
    WorkflowDetailAnswer,
    WorkflowRunAnswer,
    WorkflowRunDetailAnswer,
)

DOCUMENT = {
    "description": "A text in YAML or JSON, or the object itself, as docs/workflows describes it",
    "oneOf": [
        {"type": "string", "pattern": NOT_BLANK},
        anything("A workflow with its nodes, or a bare node."),
    ],
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


class Workflows(Listed):
    permission_classes = [MembersWrite]
    scopes = {"GET": READ_OR_RUNS, "POST": MANAGE}
    refusals = {"POST": (NotFound, AlreadyExists, WorkflowInvalid, StorageLimitReached, LimitReached)}
    does = {"GET": "List the workflows of the organization, newest first."}
    Answer = WorkflowAnswer
    Body = ApplyBody
    rows = staticmethod(services.visible_workflows)

    class Filter(Filters):
        name = serializers.CharField(required=False, allow_blank=True)
        project_id = serializers.CharField(required=False, allow_blank=True)
        lookups = {"name": "name", "project_id": "project__slug"}

    @extend_schema(request=ApplyBody, responses={201: WorkflowDetailAnswer, 200: WorkflowDetailAnswer})
    def post(self, request: Request) -> Response:
        """Apply a workflow document: it makes the workflow, or adds a version to it."""
        workflow, created = services.apply_document(caller(request), **self.fields(request))
        return Response(
            WorkflowDetailAnswer(workflow).data,
            status=status.HTTP_201_CREATED if created else status.HTTP_200_OK,
            headers={"Location": f"/api/v1/workflows/{workflow.id}"} if created else {},
        )


class WorkflowDetail(Removed):
    permission_classes = [MembersWrite]
    scopes = {"GET": READ_OR_RUNS, "PUT": MANAGE, "DELETE": MANAGE}
    refusals = {"PUT": (AlreadyExists, WorkflowInvalid, StorageLimitReached), "DELETE": (InUse,)}
    does = {
        "GET": "Show one workflow, with its document and versions.",
        "DELETE": "Delete a workflow with its versions and workflow runs. The runs of its nodes stay.",
    }
    Answer = WorkflowDetailAnswer
    Body = DocumentBody
    rows = staticmethod(services.visible_workflows)
    remove = staticmethod(services.delete_workflow)

    def put(self, request: Request, workflow_id: str) -> Response:
        """Give a workflow a new document, and perhaps a new name."""
        access = caller(request)
        workflow = services.find_workflow(access, workflow_id)
        return Response(self.answer(access, services.change_document(access, workflow, **self.fields(request))))


class WorkflowRuns(Listed):
    permission_classes = [MembersWrite]
    scopes = {"GET": READ_OR_RUNS, "POST": RUNS}
    refusals = {"POST": (services.InputRequired, CredentialUnreadable, IdempotencyKeyReused, StorageLimitReached)}
    does = {"GET": "List the workflow runs of one workflow, newest first."}
    Answer = WorkflowRunAnswer
    Body = StartBody

    @staticmethod
    def rows(access: Access, workflow_id: str) -> OrgScopedQuerySet[WorkflowRun]:
        workflow = services.find_workflow(access, workflow_id)
        return services.listed(services.visible_workflow_runs(access).filter(version__workflow=workflow))

    @extend_schema(
        request=StartBody,
        responses={202: WorkflowRunDetailAnswer, 200: WorkflowRunDetailAnswer},
        parameters=[
            IDEMPOTENCY_KEY,
            OpenApiParameter("Prefer", str, OpenApiParameter.HEADER, description="wait=N, at most 60 seconds"),
        ],
    )
    def post(self, request: Request, workflow_id: str) -> Response:
        """Run the newest version of a workflow. With `Prefer: wait=N` the answer is the ended workflow run."""
        workflow = services.find_workflow(caller(request), workflow_id)
        key = idempotency_key(request)
        given = self.fields(request).get("input")
        workflow_run = services.start(caller(request), workflow, given=given, idempotency_key=key)
        return Response(
            WorkflowRunDetailAnswer(workflow_run).data,
            status=status.HTTP_202_ACCEPTED,
            headers={"Location": f"/api/v1/workflow-runs/{workflow_run.id}"},
        )


class WorkflowRunDetail(Shown):
    permission_classes = [MembersRead]
    scopes = {"GET": READ_OR_RUNS}
    does = {"GET": "Show one workflow run, with the state and output of each node."}
    Answer = WorkflowRunDetailAnswer
    rows = staticmethod(services.visible_workflow_runs)


class WorkflowRunCancel(Endpoint):
    permission_classes = [MembersWrite]
    scopes = {"POST": RUNS}
    refusals = {"POST": (services.WorkflowRunNotCancellable,)}

    @extend_schema(request=None, responses=WorkflowRunDetailAnswer)
    def post(self, request: Request, workflow_run_id: str) -> Response:
        """Cancel a workflow run: nodes that wait are not run, and those that run are cancelled."""
        found = services.find_workflow_run(caller(request), workflow_run_id)
        return Response(WorkflowRunDetailAnswer(services.cancel(caller(request), found)).data)


class RetryBody(CamelSerializer):
    """The node from which a workflow run is started again."""

    node_id = serializers.CharField(max_length=63)


class WorkflowRunRetry(Endpoint):
    """Start an ended workflow run again from one of its nodes on."""

    permission_classes = [MembersWrite]
    scopes = {"POST": RUNS}
    refusals = {"POST": (services.WorkflowRunNotEnded, CredentialUnreadable, IdempotencyKeyReused, StorageLimitReached)}
    Body = RetryBody

    @extend_schema(request=RetryBody, responses={202: WorkflowRunDetailAnswer}, parameters=[IDEMPOTENCY_KEY])
    def post(self, request: Request, workflow_run_id: str) -> Response:
        """
        Start an ended workflow run again from a node on, with the same version and input.

        The other nodes that succeeded keep their results. The answer is a new workflow run.
        """
        found = services.find_workflow_run(caller(request), workflow_run_id)
        key = idempotency_key(request)
        node_id = read_body(RetryBody, request)["node_id"]
        with named_in("/nodeId"):
            begun = services.retry(caller(request), found, node_id=node_id, idempotency_key=key)
        return Response(
            WorkflowRunDetailAnswer(begun).data,
            status=status.HTTP_202_ACCEPTED,
            headers={"Location": f"/api/v1/workflow-runs/{begun.id}"},
        )
