"""REST: the requests of a machine that executes host-session runs."""

from typing import Any

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from integrations.providers.base import ADAPTERS, Told
from rensei.core.api import LARGE_BODY_LIMIT, CamelSerializer
from rensei.core.errors import NotFound, named_in
from rensei.core.json_fields import BLOCK, JSONDocument, anything
from rensei.core.limits import limit
from rensei.core.usage import Usage
from rensei.dispatch.host_sessions import leases
from rensei.dispatch.host_sessions.leases import LeaseLost, Report
from rensei.dispatch.host_sessions.reported_usage import TOKENS_MAX
from rensei.dispatch.models import Run
from rensei.dispatch.modes.host_session import RequiresLocalCapacity, WrongMachine
from rensei.dispatch.queries import find_run
from rensei.dispatch.settlement.outcomes import RunTimeout
from rensei.dispatch.wire import RunAnswer
from rensei.orgs.access import Access, caller
from rensei.orgs.kill_switches import OrgSuspended, PausedByOperator
from rensei.orgs.permissions import MembersWrite
from rensei.orgs.resources import Resource
from rensei.orgs.scopes import LEASES

WAIT_SECONDS_MAX = limit(
    25, "seconds", what="Time that a machine waits for a run in one request", told="the caller: 204, and it asks again"
)
REPORTS_MAX = limit(
    16,
    "reports",
    what="Reports of usage that a machine passes on of one answer",
    told="the caller: 400 `VALIDATION_FAILED` with the field",
)
REPORTED = (
    "HOST_LOGIN_MISSING",
    "HOST_PLAN_EXHAUSTED",
    "PROVIDER_AUTH_FAILED",
    "PROVIDER_UNFUNDED",
    "PROVIDER_REJECTED",
    "PROVIDER_RATE_LIMITED",
    "PROVIDER_OVERLOADED",
    "PROVIDER_UNAVAILABLE",
    "PROVIDER_STREAM_BROKEN",
    "RUN_TIMEOUT",
)

OF_LEASE = (
    WrongMachine,
    RequiresLocalCapacity,
    OrgSuspended,
    PausedByOperator,
    RunTimeout,
    *(refusal for adapter in ADAPTERS.values() for refusal in adapter.refusals),
)
OF_LEASED = (WrongMachine, LeaseLost)


def _tokens() -> serializers.IntegerField:
    return serializers.IntegerField(min_value=0, max_value=TOKENS_MAX, default=0)


class UsageBody(CamelSerializer):
    """Token counts as the provider reported them to the machine."""

    input_tokens = _tokens()
    output_tokens = _tokens()
    cache_read_tokens = _tokens()
    cache_write_5m_tokens = _tokens()
    cache_write_1h_tokens = _tokens()
    thinking_tokens = _tokens()


class ToldBody(CamelSerializer):
    """What the answer tells of its model and its usage, in the provider's own format."""

    model = serializers.CharField(default="", allow_blank=True, max_length=128)
    reports = serializers.ListField(
        child=JSONDocument("ProviderUsage", anything("A report of usage, unchanged: that of the start comes first.")),
        default=list,
        max_length=REPORTS_MAX,
    )


class LeaseAnswer(CamelSerializer):
    """A leased run with the finished parameters of its call."""

    run = RunAnswer()
    epoch = serializers.IntegerField(
        source="attempt.epoch", help_text="Goes with everything that is said about this lease"
    )
    lease_until = serializers.DateTimeField(source="until")
    attempt_id = serializers.CharField(source="attempt.id")
    request = JSONDocument(
        "ModelRequest",
        anything("Parameters of the Messages API, to be sent as they are."),
        source="params",
    )


class HostLease(Resource):
    permission_classes = [MembersWrite]
    scopes = {"POST": LEASES}
    refusals = {"POST": OF_LEASE}

    class Body(CamelSerializer):
        run_id = serializers.CharField(required=False, max_length=40)
        wait = serializers.IntegerField(min_value=0, max_value=WAIT_SECONDS_MAX, default=0)

    @extend_schema(responses={200: LeaseAnswer, 204: OpenApiResponse(description="Nothing waits for this machine.")})
    def post(self, request: Request, host_id: str) -> Response:
        """
        Take a run that waits for the machine, or the one that `runId` names.

        204 where none waits. With `wait`, the answer comes as soon as there is a run, and after so many seconds at the
        latest.
        """
        access = caller(request)
        if access.host is None or access.host.id != host_id:
            raise NotFound
        run_id = self.fields(request).get("run_id")

        lease = leases.take(access, _named_run(access, run_id)) if run_id else leases.take_next(access)
        if lease is None:
            return Response(status=status.HTTP_204_NO_CONTENT)
        return Response(LeaseAnswer(lease).data)


def _named_run(access: Access, run_id: str) -> Run:
    with named_in("/runId"):
        return find_run(access, run_id)


class LeaseStateAnswer(CamelSerializer):
    lease_until = serializers.DateTimeField(source="until")
    cancel_requested = serializers.BooleanField(help_text="Hang up, and finish with what was seen")


class LeaseHeartbeat(Resource):
    permission_classes = [MembersWrite]
    scopes = {"POST": LEASES}
    refusals = {"POST": OF_LEASED}
    Answer = LeaseStateAnswer

    class Body(CamelSerializer):
        epoch = serializers.IntegerField(min_value=0, max_value=2**31 - 1)

    def post(self, request: Request, run_id: str) -> Response:
        """Renew a lease, every five seconds. The answer says whether the run was cancelled."""
        run = find_run(caller(request), run_id)
        return Response(self.Answer(leases.heartbeat(caller(request), run, **self.fields(request))).data)


class LeaseChunks(Resource):
    permission_classes = [MembersWrite]
    scopes = {"POST": LEASES}
    refusals = {"POST": OF_LEASED}
    Answer = LeaseStateAnswer

    class Body(CamelSerializer):
        epoch = serializers.IntegerField(min_value=0, max_value=2**31 - 1)
        text = serializers.CharField(default="", allow_blank=True, trim_whitespace=False)
        usage = UsageBody(required=False)

    def post(self, request: Request, run_id: str) -> Response:
        """Append pieces of the answer, and the usage so far, to the run's events. It keeps the lease too."""
        run = find_run(caller(request), run_id)
        fields = self.fields(request)

        state = leases.add_chunks(
            caller(request), run, epoch=fields["epoch"], text=fields["text"], usage=_usage(fields)
        )
        return Response(self.Answer(state).data)


class LeaseFinish(Resource):
    permission_classes = [MembersWrite]
    scopes = {"POST": LEASES}
    refusals = {"POST": OF_LEASED}
    body_limit = LARGE_BODY_LIMIT

    class Body(CamelSerializer):
        class Output(CamelSerializer):
            text = serializers.CharField(default="", allow_blank=True, trim_whitespace=False)
            content = serializers.ListField(child=JSONDocument("Block", BLOCK), default=list)
            stop_reason = serializers.CharField(default="", allow_blank=True, allow_null=True, max_length=40)

        class Error(CamelSerializer):
            code = serializers.ChoiceField(choices=REPORTED)
            detail = serializers.CharField(default="", allow_blank=True, max_length=2000)
            fix = serializers.CharField(default="", allow_blank=True, max_length=2000)

        epoch = serializers.IntegerField(min_value=0, max_value=2**31 - 1)
        state = serializers.ChoiceField(choices=sorted(Run.ENDED))
        output = Output(required=False, allow_null=True)
        usage = UsageBody(required=False, allow_null=True)
        told = ToldBody(
            required=False,
            allow_null=True,
            help_text="Where it has reports, the usage of each model is read from them, and `usage` is not.",
        )
        estimated = serializers.BooleanField(default=False)
        sent = serializers.BooleanField(help_text="Whether the request may have reached the provider")
        error = Error(required=False, allow_null=True)
        provider_request_id = serializers.CharField(default="", allow_blank=True, max_length=120)

    @extend_schema(responses=RunAnswer)
    def post(self, request: Request, run_id: str) -> Response:
        """
        End a leased run with what came of its call. Repeating it answers the same.

        A run that was given up meanwhile is settled late: the answer is LEASE_LOST, with the run in `run`.
        """
        run = find_run(caller(request), run_id)
        fields = self.fields(request)

        run = leases.finish(caller(request), run, epoch=fields["epoch"], report=_report(fields))
        return Response(RunAnswer(run).data)


def _report(fields: dict[str, Any]) -> Report:
    output, error = fields.get("output") or {}, fields.get("error") or {}
    return Report(
        state=Run.State(fields["state"]),
        sent=fields["sent"],
        text=output.get("text", ""),
        content=output.get("content", []),
        stop_reason=output.get("stop_reason") or "",
        usage=_usage(fields),
        told=_told(fields),
        estimated=fields["estimated"],
        error_code=error.get("code", ""),
        detail=error.get("detail", ""),
        fix=error.get("fix", ""),
        request_id=fields["provider_request_id"],
    )


def _told(fields: dict[str, Any]) -> Told | None:
    told, output = fields.get("told"), fields.get("output") or {}
    if not told:
        return None
    has_output = bool(output.get("text") or output.get("content"))
    is_refusal = output.get("stop_reason") == "refusal" and not has_output
    return Told(model=told["model"], reports=told["reports"], is_refusal=is_refusal)


def _usage(fields: dict[str, Any]) -> Usage | None:
    return Usage(**fields["usage"]) if fields.get("usage") else None
