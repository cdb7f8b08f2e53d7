"""
A request for Anthropic's Messages API. Everything here is pure, and depends on a model's capabilities.

Source: https://platform.claude.com/docs/en/api/messages and …/build-with-claude/effort
"""

from collections.abc import Mapping, Sequence
from typing import Any

from catalog.models import CatalogEntry
from catalog.services import check_effort
from integrations.providers.anthropic import features
from integrations.providers.anthropic.additions import effort_for
from integrations.providers.anthropic.bounds import PromptBounds
from integrations.providers.anthropic.caching import cache_writes_of, with_cache_breakpoints
from integrations.providers.anthropic.effort import ANSWER_TOKENS_MIN, budget_of, effort_params
from integrations.providers.anthropic.other_models import provider_chooses
from integrations.providers.anthropic.tokens import tokens_about
from integrations.providers.anthropic.unknown import unknown_in
from integrations.providers.base import BuiltRequest, ModelRequest
from rensei.core.effort import Effort
from rensei.core.errors import FieldError, RenseiError, Said

MAX_TOKENS_DEFAULT = 16_384


class ContextWindowExceeded(RenseiError):
    """The prompt is longer than the context window."""

    code = "CONTEXT_WINDOW_EXCEEDED"
    status = 422
    title = "Context window exceeded"
    message = Said(
        "The prompt has {counted} {input}{beside}, but the context window is {window}.",
        "Shorten the prompt, raise contextWindow, or choose a model with a larger window.",
    )
    # It begins with the provider's own sentence, which causes Claude Code to compact the conversation.
    gateway_message = (
        "prompt is too long: {input_tokens} tokens > {maximum} maximum. Shorten the prompt, raise the profile's "
        "context window, or choose a model with a larger one."
    )


def check_last_turn(messages: Sequence[Mapping[str, Any]], *, entry: CatalogEntry) -> None:
    """
    Check that the model accepts the last turn: newer models do not continue a prefilled answer.

    :raises FieldError: with a pointer to the last message
    """
    if messages[-1]["role"] == "assistant" and not entry.capabilities.get("prefill"):
        raise FieldError(
            pointer=f"/messages/{len(messages) - 1}/role",
            reason=f"{entry.display_name} does not continue an answer that was begun for it. End with a user message.",
        )


def build(request: ModelRequest, *, entry: CatalogEntry) -> BuiltRequest:
    """
    Build the parameters of the Messages API.

    :raises EffortNotSupported: if the model does not have this level
    :raises ContextWindowExceeded: if the prompt exceeds the context window by any count
    :raises FieldError: if the caller's own numbers do not fit the model
    """
    params: dict[str, Any] = {"model": entry.model_id, "max_tokens": 0, "messages": request.messages}
    if request.system:
        params["system"] = request.system
    unknown = unknown_in(params)
    bounds = PromptBounds(params, unknown=unknown, window=entry.context_window_tokens)
    window = _window(request.context_window_tokens, entry=entry)

    effort = _effort_to_use(request.effort, entry=entry)
    effort_applied, left_out = _effort_of(
        request, effort, entry=entry, left=window - bounds.at_least if window else None
    )
    params |= effort_applied
    params["max_tokens"] = _max_tokens(request, budget=budget_of(effort_applied), entry=entry)
    if window:
        params = _fitted(params, input_tokens=bounds.at_least, window=window, counted="at least")
    params = with_cache_breakpoints(params, prompt_caching=request.prompt_caching, capabilities=entry.capabilities)
    return BuiltRequest(
        params=params,
        effort=effort if effort_applied else None,
        effort_applied=effort_applied,
        effort_left_out=left_out,
        max_tokens=params["max_tokens"],
        input_tokens_at_least=bounds.at_least,
        input_tokens_about=tokens_about(params, high_resolution_vision=bool(entry.capabilities.get("highResVision"))),
        input_tokens_at_most=bounds.at_most,
        price_factor_at_most=features.highest_factor(params),
        cache_writes=cache_writes_of(params),
        unknown=frozenset(unknown.names),
        provider_chooses=provider_chooses(params, unknown),
    )


def fit(params: Mapping[str, Any], *, input_tokens: int, context_window_tokens: int) -> dict[str, Any]:
    """
    Limit max tokens to what an exactly counted prompt leaves of the context window.

    :raises ContextWindowExceeded: if it leaves too little
    """
    return _fitted(params, input_tokens=input_tokens, window=context_window_tokens, counted="exactly")


def _effort_to_use(effort: str | None, *, entry: CatalogEntry) -> str | None:
    """The requested effort, else medium where the model offers it, else none."""
    check_effort(entry, effort)
    return effort or (Effort.MEDIUM.value if Effort.MEDIUM.value in entry.effort_levels else None)


def _effort_of(
    request: ModelRequest, effort: str | None, *, entry: CatalogEntry, left: int | None
) -> tuple[dict[str, Any], str]:
    """
    Convert an effort to the model's parameters. An effort not set by the caller yields to what the caller set.

    :param left: what the prompt leaves of the context window, or None if that is unknown
    :raises FieldError: if the caller requests thinking with something that rules it out, or has no room for it
    """
    if not request.effort_is_asked:
        asked = request.max_tokens if request.max_tokens_is_asked else None
        limits = [limit for limit in (left, asked, request.max_tokens_cap) if limit is not None]
        values: dict[str, Any] = {"messages": request.messages}
        if limits:
            values["max_tokens"] = max(0, min(limits))
        return effort_for(values, effort or "", entry=entry)
    params = effort_params(effort, entry=entry)
    if request.max_tokens == 0 and budget_of(params):
        raise FieldError(
            pointer="/effort",
            reason="`maxTokens` 0 only fills the cache, so there is nothing to think about. Leave out the effort.",
        )
    budget, cap = budget_of(params), request.max_tokens_cap
    if budget and cap is not None and cap < budget + _answer_tokens_of(request):
        raise FieldError(
            pointer="/effort",
            reason=f"The platform's keys allow an answer of at most {cap} tokens, thinking included, and this effort "
            f"takes {budget} for thinking. Choose a lower effort, or leave it out.",
        )
    if budget and request.messages and request.messages[-1]["role"] == "assistant":
        raise FieldError(
            pointer="/effort",
            reason=f"{entry.display_name} does not think while it continues an answer that was begun for it. "
            "Leave out the effort, or end with a user message.",
        )
    return params, ""


def _max_tokens(request: ModelRequest, *, budget: int, entry: CatalogEntry) -> int:
    """
    Choose max tokens: the requested number plus the thinking budget; or the default, thinking included.

    Nothing is added to a caller's own number for an effort that the caller did not request. No number exceeds the cap
    of the key pool.
    """
    wanted = _wanted_tokens(request, budget=budget, entry=entry)
    return wanted if request.max_tokens_cap is None else min(wanted, request.max_tokens_cap)


def _answer_tokens_of(request: ModelRequest) -> int:
    """Return what a thinking budget must leave for the answer: what was requested for it, up to the minimum."""
    return ANSWER_TOKENS_MIN if request.max_tokens is None else min(ANSWER_TOKENS_MIN, request.max_tokens)


def _wanted_tokens(request: ModelRequest, *, budget: int, entry: CatalogEntry) -> int:
    limit, requested = entry.max_output_tokens, request.max_tokens
    if requested is not None and requested < 0:
        raise FieldError(pointer="/maxTokens", reason="maxTokens must be at least 0.")
    if requested is not None and limit is not None and requested > limit:
        raise FieldError(
            pointer="/maxTokens",
            reason=f"maxTokens is {requested}, but {entry.display_name} gives at most {limit} output tokens.",
        )
    if requested is None:
        return min(MAX_TOKENS_DEFAULT, limit) if limit else MAX_TOKENS_DEFAULT
    if not budget or (request.max_tokens_is_asked and not request.effort_is_asked):
        return requested
    needed = budget + requested
    if limit is not None and needed > limit:
        raise FieldError(
            pointer="/maxTokens",
            reason=f"maxTokens {requested} and the {budget} tokens of thinking at this effort come to {needed}, but "
            f"{entry.display_name} gives at most {limit} output tokens. Lower maxTokens or the effort.",
        )
    return needed


def _window(requested: int | None, *, entry: CatalogEntry) -> int | None:
    own = entry.context_window_tokens
    pointer = "/providerConfig/anthropic/contextWindow"
    if requested is not None and requested < 1:
        raise FieldError(pointer=pointer, reason="contextWindow must be a positive number of tokens.")
    if requested is not None and own is not None and requested > own:
        raise FieldError(
            pointer=pointer,
            reason=f"contextWindow is {requested}, but that of {entry.display_name} is {_tokens(own)}.",
        )
    return requested if requested is not None else own


def _fitted(params: Mapping[str, Any], *, input_tokens: int, window: int, counted: str) -> dict[str, Any]:
    budget = budget_of(params)
    left = window - input_tokens
    if left < min(params["max_tokens"], budget + ANSWER_TOKENS_MIN if budget else 1):
        raise too_long(input_tokens=input_tokens, window=window, counted=counted, budget=budget)
    return {**params, "max_tokens": min(params["max_tokens"], left)}


def too_long(*, input_tokens: int, window: int, counted: str, budget: int = 0) -> ContextWindowExceeded:
    """Build the refusal of a prompt that is too long, with both numbers, and the budget that must also fit."""
    beside = ""
    if budget:
        beside = f", and {budget + ANSWER_TOKENS_MIN} are kept for thinking and the answer"
    elif input_tokens == window:
        beside = ", and the answer needs room for at least 1 more"
    return ContextWindowExceeded(
        extra={"inputTokens": input_tokens, "contextWindowTokens": window},
        counted=counted,
        input=_tokens(input_tokens),
        beside=beside,
        window=_tokens(window),
        input_tokens=input_tokens,
        maximum=window,
    )


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"
