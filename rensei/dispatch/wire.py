"""The JSON schema of a run and its parts, each declared once for the OpenAPI document."""

from rest_framework import serializers

from rensei.core.api import CamelSerializer
from rensei.core.auth_modes import AuthMode, Payer
from rensei.core.json_fields import BLOCK, METADATA, JSONDocument, anything
from rensei.dispatch.models import Run
from rensei.policies.resolver import Verdict

EFFORT_APPLIED = anything(
    "The parameters of the provider that the effort became; empty where it became none.",
    properties={
        "thinking": anything(
            "As in the Messages API.",
            properties={"type": {"type": "string"}, "budget_tokens": {"type": "integer"}},
        ),
        "output_config": anything("As in the Messages API.", properties={"effort": {"type": "string"}}),
    },
)


class RunOutputSchema(CamelSerializer):
    text = serializers.CharField(allow_blank=True)
    content = serializers.ListField(
        child=JSONDocument("Block", BLOCK), help_text="The content blocks, as the Messages API has them"
    )
    stop_reason = serializers.CharField(allow_null=True)


class RunUsageSchema(CamelSerializer):
    """Token counts by class. The classes do not overlap; thinking tokens are part of the output tokens."""

    input_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    cache_read_tokens = serializers.IntegerField()
    cache_write_5m_tokens = serializers.IntegerField()
    cache_write_1h_tokens = serializers.IntegerField()
    thinking_tokens = serializers.IntegerField()
    web_search_requests = serializers.IntegerField()


class RunCostSchema(CamelSerializer):
    amount_usd = serializers.CharField(allow_null=True, help_text="An exact decimal string; null while it is unknown")
    billed = serializers.BooleanField()
    estimated = serializers.BooleanField()


class RunErrorSchema(CamelSerializer):
    """Why a run failed, and the step that mends it."""

    code = serializers.CharField()
    detail = serializers.CharField()
    fix = serializers.CharField(allow_blank=True)
    retryable = serializers.BooleanField(required=False)
    provider_status = serializers.IntegerField(allow_null=True, required=False)
    provider_request_id = serializers.CharField(allow_blank=True, allow_null=True, required=False)


class TraceLineSchema(CamelSerializer):
    """What became of one auth mode, and who denied it."""

    mode = serializers.ChoiceField(choices=AuthMode.choices)
    verdict = serializers.ChoiceField(choices=[verdict.value for verdict in Verdict])
    code = serializers.CharField(allow_null=True)
    denied_by = serializers.CharField(allow_null=True, help_text="`system`, `organization` or `project`")
    detail = serializers.CharField(allow_null=True)


class QuoteSchema(CamelSerializer):
    """What a dispatch in one mode would cost: a typical answer, and the longest possible one."""

    mode = serializers.ChoiceField(choices=AuthMode.choices)
    would_run = serializers.BooleanField()
    code = serializers.CharField(allow_null=True)
    payer = serializers.ChoiceField(choices=Payer.choices)
    expected_usd = serializers.CharField(allow_null=True)
    max_usd = serializers.CharField(allow_null=True)


class RunEventSchema(CamelSerializer):
    """One event of the stream."""

    id = serializers.CharField(required=False, help_text="For `Last-Event-ID`")
    event = serializers.CharField(help_text="`state` and `done` with the run, `delta` with `text`, or `usage`")
    data = serializers.CharField(  # type: ignore[assignment]
        help_text="A JSON object: a run, `{text}`, or the usage so far"
    )


class ListedRunSchema(CamelSerializer):
    """The wire form of a run in a list."""

    id = serializers.CharField()
    state = serializers.ChoiceField(choices=Run.State.choices)
    profile_id = serializers.CharField(allow_null=True)
    project_id = serializers.CharField(allow_null=True)
    provider = serializers.CharField()
    asked_model = serializers.CharField(help_text="the name that the profile or the caller gave")
    model = serializers.CharField()
    served_model = serializers.CharField()
    auth_mode = serializers.ChoiceField(choices=AuthMode.choices)
    payer = serializers.CharField()
    pool = serializers.CharField()
    host_id = serializers.CharField(allow_null=True)
    effort = serializers.CharField(allow_null=True)
    effort_applied = JSONDocument("EffortApplied", EFFORT_APPLIED)
    metadata = JSONDocument("Metadata", METADATA)
    usage = RunUsageSchema()
    cost = RunCostSchema()
    error = RunErrorSchema(allow_null=True)
    attempts = serializers.IntegerField()
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)


class RunSchema(ListedRunSchema):
    """The wire form of a run."""

    output = RunOutputSchema(allow_null=True)
    trace = TraceLineSchema(many=True)
