"""
What Rensei adds to a caller's request, and when it adds nothing.

An addition never makes a valid request invalid, and never changes a limit that the caller gave. An unknown part of a
request may conflict with any addition, so nothing is added to such a request.

Sources: https://platform.claude.com/docs/en/build-with-claude/extended-thinking, …/effort and …/message-threads
"""

from collections.abc import Mapping
from typing import Any

from catalog.models import CatalogEntry
from integrations.providers.anthropic.effort import ANSWER_TOKENS_MIN, budget_of, effort_params

# The fields that are known to be accepted together with an effort and cache breakpoints. `thread` is not one: the
# provider holds its earlier turns, so it cannot be checked whether an addition fits them.
_FIELDS = frozenset(
    {
        "cache_control",
        "container",
        "context_management",
        "diagnostics",
        "fallback_credit_token",
        "inference_geo",
        "max_tokens",
        "mcp_servers",
        "messages",
        "metadata",
        "model",
        "output_config",
        "service_tier",
        "speed",
        "stop_sequences",
        "stream",
        "system",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    }
)
# Breakpoints fit more fields than an effort does. A fallback may be a model without such an effort.
_WITH_BREAKPOINTS = _FIELDS | {"fallbacks", "output_format"}
_SAMPLING = ("temperature", "top_k", "top_p")
_FORCES_A_TOOL = ("any", "tool")
_THINKING = ("thinking", "redacted_thinking")


def effort_for(values: Mapping[str, Any], effort: str, *, entry: CatalogEntry) -> tuple[dict[str, Any], str]:
    """
    Choose what a profile's effort adds to a request. Return it with a reason, if a part of it is left out.

    Nothing is added and no reason is given where the caller chose an effort or a way of thinking.
    """
    config = values.get("output_config")
    if not effort or "thinking" in values or (isinstance(config, dict) and "effort" in config):
        return {}, ""
    if standing_against := _standing_against(values, _FIELDS):
        return {}, f"The profile's effort was left out, because the request has `{standing_against}`."
    params = effort_params(effort, entry=entry)
    reason = _why_not_to_think(values, budget=budget_of(params)) if "thinking" in params else ""
    if reason:
        params = {name: value for name, value in params.items() if name != "thinking"}
        what = "thinking" if params else "effort"
        reason = f"The profile's {what} was left out, because {reason}."
    if isinstance(config, dict) and "output_config" in params:
        params["output_config"] = {**config, **params["output_config"]}
    return params, reason


def takes_breakpoints(values: Mapping[str, Any]) -> bool:
    """Return whether cache breakpoints may be added to a request that has none."""
    return not _standing_against(values, _WITH_BREAKPOINTS)


def _standing_against(values: Mapping[str, Any], fitting: frozenset[str]) -> str:
    """Return the name of a field that rules out additions, or an empty text."""
    return min(values.keys() - fitting, default="")


def _why_not_to_think(values: Mapping[str, Any], *, budget: int) -> str:
    """Return what rules out thinking, or an empty text. A budget belongs to the older API, which is stricter."""
    choice = values.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") in _FORCES_A_TOOL:
        return "the request forces a tool"
    if any(name in values for name in _SAMPLING):
        return "the request chooses its sampling"
    max_tokens = values.get("max_tokens")
    if max_tokens == 0:
        return "the request only fills the cache"
    if not budget:
        return ""
    if isinstance(max_tokens, int) and max_tokens < budget + ANSWER_TOKENS_MIN:
        return f"{max_tokens} tokens have no room for {budget} of thinking and an answer"
    turns = values.get("messages")
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        if turns and turns[-1].get("role") == "assistant":
            return "the conversation ends with an answer begun for the model"
        if _calls_tools_without_thinking(turns):
            return "the turn that called the tools began without thinking"
    return ""


def _calls_tools_without_thinking(turns: list[dict[str, Any]]) -> bool:
    """Return whether the current turn has called tools without thinking. Thinking must then stay off."""
    for index in reversed(range(len(turns))):
        if turns[index].get("role") != "assistant" and not _gives_results(turns[index]):
            began = turns[index + 1 : index + 2]
            return bool(began) and began[0].get("role") == "assistant" and not _begins_with_thinking(began[0])
    return False


def _gives_results(turn: dict[str, Any]) -> bool:
    content = turn.get("content")
    return isinstance(content, list) and any(
        isinstance(block, dict) and block.get("type") == "tool_result" for block in content
    )


def _begins_with_thinking(turn: dict[str, Any]) -> bool:
    content = turn.get("content")
    return (
        isinstance(content, list)
        and bool(content)
        and isinstance(content[0], dict)
        and (content[0].get("type") in _THINKING)
    )
