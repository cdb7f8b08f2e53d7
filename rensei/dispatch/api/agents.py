"""REST: the calls of a run, and the files that an agent has left."""

from django.http import HttpResponse
from django.utils.http import content_disposition_header
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request

from rensei.core.api import CamelSerializer, OptionalText
from rensei.core.errors import NotFound
from rensei.core.views import Endpoint
from rensei.dispatch.models import Attempt, RunFile
from rensei.dispatch.queries import calls_of, find_run_file
from rensei.dispatch.wire import Amount, RunErrorAnswer
from rensei.orgs.access import caller
from rensei.orgs.permissions import MembersRead
from rensei.orgs.resources import Listed
from rensei.orgs.scopes import READ_OR_RUNS


class CallAnswer(CamelSerializer):
    """One call of a run to the provider."""

    id = serializers.CharField()
    number = serializers.IntegerField()
    state = serializers.ChoiceField(choices=Attempt.State.choices)
    amount_usd = Amount(source="amount", allow_null=True, help_text="An exact decimal string; null while it is unknown")
    agent_id = OptionalText(help_text="The subagent that made it, as its program says; null for the main agent")
    parent_agent_id = OptionalText(help_text="The subagent that started that one; null for the main agent")
    provider_request_id = serializers.CharField(allow_blank=True)
    error = RunErrorAnswer(allow_null=True)
    started_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)


class RunCalls(Listed):
    permission_classes = [MembersRead]
    scopes = {"GET": READ_OR_RUNS}
    refusals = {"GET": (NotFound,)}
    does = {"GET": "List the calls of a run, newest first, with what each has cost."}
    Answer = CallAnswer

    rows = staticmethod(calls_of)


class RunFileContent(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": READ_OR_RUNS}
    refusals = {"GET": (NotFound,)}

    @extend_schema(responses={(200, "application/octet-stream"): OpenApiTypes.BINARY})
    def get(self, request: Request, run_id: str, file_id: str) -> HttpResponse:
        """Download a file that an agent has left."""
        return download(find_run_file(caller(request), run_id, file_id))


def download(file: RunFile) -> HttpResponse:
    """Answer with a file. A program wrote it, therefore a browser must save it and not show it."""
    response = HttpResponse(bytes(file.content), content_type="application/octet-stream")
    name = file.path.rpartition("/")[2]
    response["Content-Disposition"] = content_disposition_header(as_attachment=True, filename=name) or "attachment"
    response["Content-Security-Policy"] = "sandbox; default-src 'none'"
    return response
