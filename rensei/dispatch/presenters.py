"""The JSON form of runs in the API."""

from datetime import UTC, datetime
from typing import Any

from rensei.core.money import dollars
from rensei.core.usage import Usage
from rensei.dispatch.models import Run


def run_body(run: Run) -> dict[str, Any]:
    """Convert a run to the JSON of the API contract."""
    output = None
    if run.output_text or run.output_content or run.state == Run.State.SUCCEEDED:
        output = {"text": run.output_text, "content": run.output_content, "stopReason": run.stop_reason or None}
    return {**listed_run_body(run), "output": output, "trace": run.trace}


def listed_run_body(run: Run) -> dict[str, Any]:
    """Convert a run to JSON for a list: without its output and trace, which may be megabytes each."""
    usage = Usage.from_dict(run.usage) if run.usage else Usage()
    return {
        "id": run.id,
        "state": run.state,
        "profileId": run.profile_id or None,
        "projectId": run.project.slug if run.project else None,
        "provider": run.provider,
        "askedModel": run.asked_model_id or run.model_id,
        "model": run.model_id,
        "servedModel": run.served_model_id,
        "authMode": run.auth_mode,
        "payer": run.payer,
        "pool": run.pool,
        "hostId": run.host_id,
        "effort": run.effort or None,
        "effortApplied": run.effort_applied,
        "metadata": run.metadata,
        "usage": usage_body(usage),
        "cost": {"amountUsd": dollars(run.amount_picodollars), "billed": run.billed, "estimated": run.estimated},
        "error": run.error,
        "attempts": run.attempt_count,
        "createdAt": moment(run.created_at),
        "startedAt": moment(run.started_at),
        "finishedAt": moment(run.finished_at),
    }


def usage_body(usage: Usage) -> dict[str, int]:
    """Convert token counts to the JSON of the API contract."""
    return {
        "inputTokens": usage.input_tokens,
        "outputTokens": usage.output_tokens,
        "cacheReadTokens": usage.cache_read_tokens,
        "cacheWrite5mTokens": usage.cache_write_5m_tokens,
        "cacheWrite1hTokens": usage.cache_write_1h_tokens,
        "thinkingTokens": usage.thinking_tokens,
        "webSearchRequests": usage.web_search_requests,
    }


def moment(value: datetime | None) -> str | None:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if value else None
