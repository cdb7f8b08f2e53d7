"""The JSON form of a run and its parts, in the API and in its OpenAPI document."""

from typing import Any

from rest_framework import serializers

from rensei.core.api import CamelSerializer, OptionalText
from rensei.core.auth_modes import AuthMode, Payer
from rensei.core.json_fields import BLOCK, METADATA, JSONDocument, anything
from rensei.core.money import dollars
from rensei.dispatch import agents
from rensei.dispatch.models import Run
from rensei.dispatch.pools import slots
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


class StoredForm(CamelSerializer):
    """A value that is stored as it is on the wire."""

    def to_representation(self, instance: Any) -> Any:
        return instance


class RunOutputAnswer(CamelSerializer):
    text = serializers.CharField(source="output_text", allow_blank=True)
    content = serializers.ListField(
        source="output_content",
        child=JSONDocument("Block", BLOCK),
        help_text="The content blocks, as the Messages API has them",
    )
    stop_reason = OptionalText()


class RunUsageAnswer(CamelSerializer):
    """Token counts by class. The classes do not overlap; thinking tokens are part of the output tokens."""

    input_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    cache_read_tokens = serializers.IntegerField()
    cache_write_5m_tokens = serializers.IntegerField()
    cache_write_1h_tokens = serializers.IntegerField()
    thinking_tokens = serializers.IntegerField()
    web_search_requests = serializers.IntegerField()


class Amount(serializers.CharField):
    def to_representation(self, value: int) -> str | None:  # type: ignore[override]
        return dollars(value)


class RunCostAnswer(CamelSerializer):
    amount_usd = Amount(
        source="amount_picodollars", allow_null=True, help_text="An exact decimal string; null while it is unknown"
    )
    billed = serializers.BooleanField()
    estimated = serializers.BooleanField()


class AgentFileAnswer(StoredForm):
    """A file that an agent has left: GET /runs/{id}/files/{fileId} has its content."""

    id = serializers.CharField()
    path = serializers.CharField()
    bytes = serializers.IntegerField()


class AgentResultAnswer(StoredForm):
    """What an agent's program has left, besides its text in `output` and its log in the events."""

    exit_code = serializers.IntegerField(allow_null=True, help_text="null if its sandbox ended before it")
    turns = serializers.IntegerField(
        allow_null=True, help_text="Answers to the main agent of Claude Code; null for others"
    )
    files = AgentFileAnswer(many=True)
    left_out = JSONDocument(
        "AgentLeftOut",
        anything(
            f"How many files match `outputs` and are not kept, by the reason: {', '.join(agents.REASONS)}.",
            additionalProperties={"type": "integer"},
        ),
    )

    def to_representation(self, instance: Any) -> Any:
        """Results from before there were turns have none."""
        return {"turns": None, **instance}


class RunErrorAnswer(StoredForm):
    """Why a run failed, and the step that mends it."""

    code = serializers.CharField()
    detail = serializers.CharField()
    fix = serializers.CharField(allow_blank=True)
    retryable = serializers.BooleanField(required=False)
    provider_status = serializers.IntegerField(allow_null=True, required=False)
    provider_request_id = serializers.CharField(allow_blank=True, allow_null=True, required=False)


class TraceLineAnswer(StoredForm):
    """What became of one auth mode, and who denied it."""

    mode = serializers.ChoiceField(choices=AuthMode.choices)
    verdict = serializers.ChoiceField(choices=[verdict.value for verdict in Verdict])
    code = serializers.CharField(allow_null=True)
    denied_by = serializers.CharField(allow_null=True, help_text="`system`, `organization` or `project`")
    detail = serializers.CharField(allow_null=True)


class QuoteAnswer(StoredForm):
    """What a dispatch in one mode would cost: a typical answer, and the longest possible one."""

    mode = serializers.ChoiceField(choices=AuthMode.choices)
    would_run = serializers.BooleanField()
    code = serializers.CharField(allow_null=True)
    payer = serializers.ChoiceField(choices=Payer.choices)
    expected_usd = serializers.CharField(allow_null=True)
    max_usd = serializers.CharField(allow_null=True)


class RunEventAnswer(CamelSerializer):
    """One event of the stream."""

    id = serializers.CharField(required=False, help_text="For `Last-Event-ID`")
    event = serializers.CharField(help_text="`state` and `done` with the run, `delta` or `log` with `text`, or `usage`")
    data = serializers.CharField(  # type: ignore[assignment]
        help_text="A JSON object: a run, `{text}`, or the usage so far"
    )


class ListedRunAnswer(CamelSerializer):
    """The wire form of a run in a list."""

    id = serializers.CharField()
    state = serializers.ChoiceField(choices=Run.State.choices)
    profile_id = OptionalText()
    project_id = serializers.CharField(source="project.slug", allow_null=True)
    provider = serializers.CharField()
    asked_model = serializers.CharField(source="asked_name", help_text="the name that the profile or the caller gave")
    model = serializers.CharField(source="model_id")
    served_model = serializers.CharField(source="served_model_id")
    auth_mode = serializers.ChoiceField(choices=AuthMode.choices)
    payer = serializers.CharField()
    pool = serializers.CharField()
    host_id = serializers.CharField(allow_null=True)
    effort = OptionalText()
    effort_applied = JSONDocument("EffortApplied", EFFORT_APPLIED)
    metadata = JSONDocument("Metadata", METADATA)
    usage = RunUsageAnswer(source="counts")
    cost = RunCostAnswer(source="*")
    error = RunErrorAnswer(allow_null=True)
    max_cost_usd = Amount(
        source="max_cost_picodollars", allow_null=True, help_text="The most that it may cost; null if not asked for"
    )
    attempts = serializers.IntegerField(source="attempt_count")
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)


class RunAnswer(ListedRunAnswer):
    """The wire form of a run."""

    output = RunOutputAnswer(source="with_output", allow_null=True)
    agent = AgentResultAnswer(source="agent_result", allow_null=True)
    trace = TraceLineAnswer(many=True)
    waits_for = serializers.SerializerMethodField(
        method_name="get_waits_for",
        help_text="Why a queued run waits, if its pool has no free slot; else null",
    )

    def get_waits_for(self, run: Run) -> str | None:
        return slots.why_waiting(run)
