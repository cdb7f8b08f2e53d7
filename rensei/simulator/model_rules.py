"""
Rules that differ between models: thinking, effort, sampling, forced tools, prefill, system messages within the
conversation, the size of prompt and answer.

Sources: https://platform.claude.com/docs/en/build-with-claude/extended-thinking, …/effort and
…/mid-conversation-system-messages
"""

from typing import Any

from rensei.simulator.errors import ApiError, invalid
from rensei.simulator.model_facts import Model

_SAMPLING = ("temperature", "top_p", "top_k")
_THINKING_KINDS = ("thinking", "redacted_thinking")


def check_model_rules(body: dict[str, Any], *, model: Model, version: str, betas: frozenset[str]) -> None:
    """
    Check a well-formed request against the model that it names.

    :raises ApiError: 400
    """
    _check_sampling(body, model=model, version=version)
    _check_thinking(body, model=model, betas=betas)
    _check_effort(body, model=model)
    _check_max_tokens(body, model=model)
    _check_tool_choice(body, model=model)
    _check_prefill(body, model=model)
    if not model.mid_conversation_system and any(message["role"] == "system" for message in body["messages"]):
        raise ApiError(400, "role 'system' is not supported on this model")
    if body.get("inference_geo") is not None and not model.inference_geo:
        raise invalid("inference_geo", f"not supported for {model.id}")
    if body.get("speed") == "fast":
        _check_fast_mode(model, betas=betas)


def _check_sampling(body: dict[str, Any], *, model: Model, version: str) -> None:
    for name in _SAMPLING:
        if body.get(name) is None:
            continue
        if not isinstance(body[name], int | float) or isinstance(body[name], bool):
            raise invalid(name, "Input should be a valid number")
        # Newer models accept only the default value.
        is_default = name != "top_k" and body[name] == 1
        if version != "2023-06-01" or not (model.sampling_on_2023_06_01 or is_default):
            raise ApiError(400, f"`{name}` is not supported for this model.")


def _check_thinking(body: dict[str, Any], *, model: Model, betas: frozenset[str]) -> None:
    thinking = body.get("thinking")
    if thinking is None:
        return
    kind = thinking["type"]
    if kind not in model.thinking_types:
        raise ApiError(400, _thinking_refusal(kind, model=model))
    effort = (body.get("output_config") or {}).get("effort")
    is_off = kind in ("disabled", "between_tools")
    if is_off and effort in ("xhigh", "max") and model.thinking_off_up_to_high_effort_only:
        raise ApiError(400, f'"thinking.type.{kind}" is not supported at effort "{effort}" for this model.')
    if kind == "enabled":
        _check_budget(body, betas=betas)
        if "adaptive" not in model.thinking_types:
            _check_turn_under_way(body["messages"])


def _thinking_refusal(kind: str, *, model: Model) -> str:
    if kind == "enabled" and "adaptive" in model.thinking_types:
        return (
            '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and '
            '"output_config.effort" to control thinking behavior.'
        )
    if kind == "adaptive":
        return "adaptive thinking is not supported on this model"
    return f'"thinking.type.{kind}" is not supported for this model.'


def _check_budget(body: dict[str, Any], *, betas: frozenset[str]) -> None:
    interleaved = "interleaved-thinking-2025-05-14" in betas and body.get("tools")
    max_tokens = body.get("max_tokens")
    if max_tokens is not None and body["thinking"]["budget_tokens"] >= max_tokens and not interleaved:
        raise ApiError(400, "`max_tokens` must be greater than `thinking.budget_tokens`.")
    if (body.get("tool_choice") or {}).get("type") in ("any", "tool"):
        raise ApiError(400, "Thinking may not be enabled when tool_choice forces tool use.")
    if body.get("temperature", 1) != 1:
        raise ApiError(400, "`temperature` may only be set to 1 when thinking is enabled.")
    if body.get("top_k") is not None:
        raise ApiError(400, "`top_k` must be unset when thinking is enabled.")
    if not 0.95 <= (1 if body.get("top_p") is None else body["top_p"]) <= 1:
        raise ApiError(400, "`top_p` must be greater than or equal to 0.95 when thinking is enabled.")


def _check_turn_under_way(messages: list[dict[str, Any]]) -> None:
    """Check that a turn which has called tools began with thinking."""
    asked = [place for place, said in enumerate(messages) if said["role"] != "assistant" and not _gives_results(said)]
    began = (asked[-1] if asked else -1) + 1
    has_called = began < len(messages) - 1
    if has_called and _first_kind(messages[began]) not in _THINKING_KINDS:
        raise ApiError(
            400,
            f"messages.{began}.content.0.type: Expected `thinking` or `redacted_thinking`, but found "
            f"`{_first_kind(messages[began])}`. When `thinking` is enabled, a final `assistant` message must start "
            "with a thinking block.",
        )


def _gives_results(message: dict[str, Any]) -> bool:
    content = message["content"]
    return isinstance(content, list) and any(block["type"] == "tool_result" for block in content)


def _first_kind(message: dict[str, Any]) -> str:
    content = message["content"]
    return str(content[0]["type"]) if isinstance(content, list) and content else "text"


def _check_effort(body: dict[str, Any], *, model: Model) -> None:
    effort = (body.get("output_config") or {}).get("effort")
    if effort is None:
        return
    if not model.efforts:
        raise ApiError(400, "This model does not support the effort parameter.")
    if effort not in model.efforts:
        raise ApiError(
            400, f"This model does not support effort level '{effort}'. Supported levels: {', '.join(model.efforts)}."
        )


def _check_max_tokens(body: dict[str, Any], *, model: Model) -> None:
    max_tokens = body.get("max_tokens")
    if max_tokens is None:
        return
    if max_tokens > model.max_tokens:
        raise invalid(
            "max_tokens",
            f"{max_tokens} > {model.max_tokens}, which is the maximum allowed number of output tokens for {model.id}",
        )
    if max_tokens == 0:
        _check_prewarming(body)


def _check_prewarming(body: dict[str, Any]) -> None:
    """Check a request that only fills the prompt cache."""
    refused = {
        "stream": body.get("stream") is True,
        "thinking": (body.get("thinking") or {}).get("type") == "enabled",
        "output_config.format": (body.get("output_config") or {}).get("format") is not None,
        "tool_choice": (body.get("tool_choice") or {}).get("type") in ("any", "tool"),
    }
    for name, given in refused.items():
        if given:
            raise invalid("max_tokens", f"0 is not allowed together with {name}")


def _check_tool_choice(body: dict[str, Any], *, model: Model) -> None:
    if (body.get("tool_choice") or {}).get("type") in ("any", "tool") and not model.forced_tool_choice:
        raise invalid("tool_choice", 'type "tool" and "any" are not supported for this model.')


def _check_prefill(body: dict[str, Any], *, model: Model) -> None:
    last = body["messages"][-1]
    if last["role"] != "assistant":
        return
    if not model.prefill:
        raise ApiError(
            400,
            "This model does not support assistant message prefill. The conversation must end with a user message.",
        )
    if (body.get("thinking") or {}).get("type") == "enabled":
        raise ApiError(400, "Assistant message prefill is not supported when thinking is enabled.")
    text = last["content"] if isinstance(last["content"], str) else ""
    if text != text.rstrip():
        raise invalid("messages", "final assistant content cannot end with trailing whitespace")


def _check_fast_mode(model: Model, *, betas: frozenset[str]) -> None:
    if model.fast_mode is None or (model.fast_mode == "beta" and "fast-mode-2026-02-01" not in betas):
        raise invalid("speed", '"fast" is not supported for this model.')
