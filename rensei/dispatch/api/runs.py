"""REST: dispatch a run, preview a dispatch, list and show runs, cancel them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.pagination import Cursor
from rest_framework.request import Request
from rest_framework.response import Response

from catalog.provider_config import config_form
from profiles import services as profiles
from rensei.core.api import LARGE_BODY_LIMIT, CamelSerializer, read_body
from rensei.core.auth_modes import AuthMode
from rensei.core.dollars_field import LimitField
from rensei.core.effort import Effort
from rensei.core.errors import FieldError
from rensei.core.json_fields import METADATA, JSONDocument, OneOf
from rensei.core.lists import CursorPages, Filters, read_filters
from rensei.core.rates import headers_of
from rensei.core.views import Endpoint
from rensei.dispatch import agents, idempotency, run_filter, search, services, token_rate
from rensei.dispatch.admission import admit, dry_run
from rensei.dispatch.admission.requests import DispatchRequest, check_system, messages_from
from rensei.dispatch.api.refusals import OF_DISPATCH, OF_DRY_RUN
from rensei.dispatch.models import Run, RunQuerySet
from rensei.dispatch.queries import find_run, visible_runs
from rensei.dispatch.request_forms import MESSAGES, PARTS, SYSTEM
from rensei.dispatch.run_filter import LOOKUPS
from rensei.dispatch.wire import ListedRunAnswer, QuoteAnswer, RunAnswer, TraceLineAnswer
from rensei.orgs.access import Access, caller
from rensei.orgs.permissions import MembersRead, MembersWrite
from rensei.orgs.resources import Listed, Shown
from rensei.orgs.scopes import READ_OR_RUNS, RUNS

IDEMPOTENCY_KEY_LENGTH = 255
IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    # The printable characters that a header can hold.
    {
        "type": "string",
        "maxLength": IDEMPOTENCY_KEY_LENGTH,
        "pattern": r"^[\u0020-\u007e\u00a1-\u00ac\u00ae-\u00ff]*$",
    },
    OpenApiParameter.HEADER,
    description="The same key with the same body within 24 hours is answered with what the first one made",
)
METADATA_BYTES = 16 * 1024
CLOCK_DIFFERENCE = timedelta(minutes=1)


class RunBody(CamelSerializer):
    """A dispatch. `input` or `messages`, not both; what is left out comes from the profile."""

    profile_id = serializers.CharField(required=False, max_length=80)
    project_id = serializers.CharField(required=False, allow_null=True, max_length=63)
    pool = serializers.CharField(required=False, max_length=63)
    host_id = serializers.CharField(required=False, allow_null=True, max_length=40)
    system = JSONDocument("SystemPrompt", SYSTEM, parts=PARTS, required=False, allow_null=True)
    input = serializers.CharField(required=False, trim_whitespace=False)
    messages = JSONDocument("Messages", MESSAGES, parts=PARTS, required=False)
    effort = serializers.ChoiceField(choices=Effort.choices, required=False, allow_null=True)
    max_tokens = serializers.IntegerField(required=False, allow_null=True, min_value=0, max_value=2**31 - 1)
    max_cost_usd = LimitField(
        source="max_cost_picodollars",
        required=False,
        allow_null=True,
        help_text="The most that the run may cost, to all payers",
    )
    provider_config = JSONDocument("ProviderConfig", config_form(), required=False)
    agent = JSONDocument(
        "Agent",
        agents.FORM,
        required=False,
        allow_null=True,
        help_text="A program that works in a sandbox, and calls the model as often as it needs. It takes `input`, "
        "`maxCostUsd` and a pool of the provider 'sandbox'",
    )
    metadata = JSONDocument("Metadata", METADATA, required=False, help_text="At most 16 kB of JSON")

    def validate_metadata(self, value: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(value)) > METADATA_BYTES:
            raise serializers.ValidationError(f"Metadata is at most {METADATA_BYTES // 1024} kB of JSON.")
        return value


class RunFilter(Filters):
    state = OneOf(Run.State.values, required=False, allow_blank=True)
    auth_mode = OneOf(AuthMode.values, required=False, allow_blank=True)
    profile_id = serializers.CharField(required=False, allow_blank=True)
    project_id = serializers.CharField(required=False, allow_blank=True)
    served_model = serializers.CharField(required=False, allow_blank=True)
    member_id = serializers.CharField(required=False, allow_blank=True, help_text="The member who dispatched it")
    code = serializers.CharField(required=False, allow_blank=True, help_text="The code of its error")
    token_id = serializers.CharField(required=False, allow_blank=True, help_text="The API token that dispatched it")
    created_after = serializers.DateTimeField(required=False, help_text="This moment, or later")
    created_before = serializers.DateTimeField(required=False, help_text="Before this moment")
    q = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=200,
        help_text="Up to 8 words, or their beginnings of 3 characters or more, of the prompt, the error, the person or "
        "the model: the newest "
        f"{search.MATCHES:,} runs of the time that have all of them. The gateway stores no prompts",
    )

    lookups = {"created_after": "created_at__gte", "created_before": "created_at__lt"}


class RunPages(CursorPages):
    """
    Pages of the runs of a time. Where filters narrow the list, each reads a bounded number of the runs in `read`.

    Where reading stops before a page is full, its link leads on from there.
    """

    def __init__(self, wanted: run_filter.RunFilter, *, read: RunQuerySet) -> None:
        self._wanted, self._read = wanted, read
        self._edge: str | None = None

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any] | None:
        self._field = queryset.model._meta.pk  # noqa: SLF001 - `decode_cursor` needs it
        cursor = self.decode_cursor(request)
        self._backwards = cursor is not None and cursor.reverse
        low = high = ""
        if cursor is not None and cursor.position:
            low, high = (run_filter.after(cursor.position), "") if cursor.reverse else ("", cursor.position)
        if self._wanted.values and not self._wanted.words:
            read = self._wanted.in_time(self._read, low=low, high=high)
            self._edge = edge = run_filter.edge_of(read, newest_first=not self._backwards)
            if edge and self._backwards:
                high = run_filter.after(edge)
            elif edge:
                low = edge
        return super().paginate_queryset(self._wanted.in_time(queryset, low=low, high=high), request, view)

    def get_next_link(self) -> str | None:
        if self._edge and not self._backwards and not self.has_next:
            return self._link_from(self._edge)
        return super().get_next_link()

    def get_previous_link(self) -> str | None:
        if self._edge and self._backwards and not self.has_previous:
            return self._link_from(self._edge)
        return super().get_previous_link()

    def _link_from(self, place: str) -> str:
        cursor = Cursor(offset=0, reverse=self._backwards, position=place)  # type: ignore[arg-type]
        return str(self.encode_cursor(cursor))


class Runs(Listed):
    permission_classes = [MembersWrite]
    scopes = {"GET": READ_OR_RUNS, "POST": RUNS}
    refusals = {"POST": OF_DISPATCH}
    does = {
        "GET": "List the runs of the organization, newest first, without outputs and traces. Where filters narrow "
        f"it, a page reads {run_filter.READ_AT_ONCE:,} runs at most: it may be short or empty, and `next` leads on."
    }
    body_limit = LARGE_BODY_LIMIT
    Filter = RunFilter
    Answer = ListedRunAnswer
    Body = RunBody

    @staticmethod
    def rows(access: Access) -> RunQuerySet:
        return visible_runs(access).listed()

    def get(self, request: Request, **_ids: str) -> Response:
        access, asked = caller(request), read_filters(RunFilter, request)
        wanted = _filter_of(asked)
        found = RunFilter.select(wanted.matching(self.rows(access), org=access.org), asked)
        pages = RunPages(wanted, read=self.rows(access))
        return pages.get_paginated_response(self.answers(access, pages.paginate_queryset(found, request) or []))

    @extend_schema(
        request=RunBody,
        responses={202: RunAnswer, 200: RunAnswer},
        parameters=[
            IDEMPOTENCY_KEY,
            OpenApiParameter("Prefer", str, OpenApiParameter.HEADER, description="wait=N, at most 60 seconds"),
        ],
    )
    def post(self, request: Request) -> Response:
        """Dispatch a run. With `Prefer: wait=N` the answer is the ended run, if it ends within so many seconds."""
        key = idempotency_key(request)
        run = admit.dispatch(
            caller(request),
            dispatch_request(request),
            idempotency_key=key,
            body_digest=_digest(caller(request), request.data) if key else "",
        )
        left = token_rate.usage_of(caller(request).org.id)
        return Response(
            RunAnswer(run).data,
            status=status.HTTP_202_ACCEPTED,
            headers={"Location": f"/api/v1/runs/{run.id}", **headers_of("tokens", [left])},
        )


def _filter_of(asked: Mapping[str, Any]) -> run_filter.RunFilter:
    """Convert the query, with a minute around its time: ids are made by the servers' clocks."""
    start, end = asked.get("created_after"), asked.get("created_before")
    return run_filter.RunFilter(
        words=asked.get("q", "").strip(),
        values={name: asked[name] for name in LOOKUPS if asked.get(name)},
        start=start and _moved(start, -CLOCK_DIFFERENCE),
        end=end and _moved(end, CLOCK_DIFFERENCE),
    )


def _moved(moment: datetime, by: timedelta) -> datetime:
    """Move a moment, except beyond the first and the last that there are."""
    try:
        return moment + by
    except OverflowError:
        return moment


def idempotency_key(request: Request) -> str:
    """:raises FieldError: if the key is too long or not printable"""
    key: str = request.headers.get("Idempotency-Key", "")
    if len(key) > IDEMPOTENCY_KEY_LENGTH or not key.isprintable():
        reason = f"An Idempotency-Key is at most {IDEMPOTENCY_KEY_LENGTH} printable characters."
        raise FieldError(pointer="/headers/Idempotency-Key", reason=reason)
    return key


class RunDetail(Shown):
    permission_classes = [MembersRead]
    scopes = {"GET": READ_OR_RUNS}
    does = {"GET": "Show one run, with its output and the trace of the decision."}
    Answer = RunAnswer
    rows = staticmethod(visible_runs)


class RunCancel(Endpoint):
    permission_classes = [MembersWrite]
    scopes = {"POST": RUNS}
    refusals = {"POST": (services.RunNotCancellable,)}

    @extend_schema(request=None, responses=RunAnswer)
    def post(self, request: Request, run_id: str) -> Response:
        """Cancel a run: at once while it is queued. The call of a running one is ended, and what it used is charged."""
        run = services.cancel_run(caller(request), find_run(caller(request), run_id))
        return Response(RunAnswer(run).data)


class ResolveAnswer(CamelSerializer):
    """What a dispatch would do."""

    auth_mode = serializers.ChoiceField(choices=AuthMode.choices, allow_null=True)
    payer = serializers.CharField(allow_null=True)
    would_run = serializers.BooleanField()
    code = serializers.CharField(allow_null=True)
    detail = serializers.CharField(allow_null=True)
    asked_model = serializers.CharField(allow_null=True)
    model = serializers.CharField(allow_null=True)
    served_model = serializers.CharField(allow_null=True)
    trace = TraceLineAnswer(many=True)
    quotes = QuoteAnswer(many=True)


class Resolve(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"POST": READ_OR_RUNS}
    refusals = {"POST": OF_DRY_RUN}
    body_limit = LARGE_BODY_LIMIT
    Body = RunBody

    @extend_schema(request=RunBody, responses=ResolveAnswer)
    def post(self, request: Request, profile_id: str) -> Response:
        """Show what a dispatch of a profile would do, without changing anything. All of the body is optional."""
        asked = dispatch_request(request, whole=False)
        # Looked up first: an unknown profile is an error of the URL, not of the body.
        profile = profiles.find_profile(caller(request), profile_id)
        return Response(dry_run.preview(caller(request), replace(asked, profile_id=profile.public_id)))


def dispatch_request(
    request: Request, *, whole: bool = True, form: type[serializers.Serializer[Any]] = RunBody
) -> DispatchRequest:
    """
    Check a dispatch body and convert it to a request. A dry run needs no `input` or `messages`.

    :raises ValidationError: if a field has the wrong shape
    :raises FieldError: if a message has the wrong shape
    """
    fields = read_body(form, request)
    text, messages = fields.get("input"), fields.get("messages")
    agent = fields.get("agent")
    if agent is not None:
        agent = agents.checked(agent)
        agents.require_fitting(fields)
    said = text is not None or messages is not None
    return DispatchRequest(
        profile_id=fields.get("profile_id"),
        project_id=fields.get("project_id"),
        pool=fields.get("pool"),
        host_id=fields.get("host_id"),
        system=check_system(fields.get("system")),
        messages=messages_from(text=text, messages=messages) if whole or said else [],
        effort=fields.get("effort"),
        max_tokens=fields.get("max_tokens"),
        max_cost_picodollars=fields.get("max_cost_picodollars"),
        provider_config=fields.get("provider_config", {}),
        agent=agent,
        metadata=fields.get("metadata", {}),
    )


def _digest(access: Access, data: Any) -> str:
    """The project is included, so that an API token of one project never gets another's run for the same key."""
    return idempotency.digest_of([access.project.pk if access.project else None, data])
