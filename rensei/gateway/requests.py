"""
What goes upstream: the caller's body as it is, but for the few things that are Rensei's to say.

These are the model that serves, and the pool's cap of the answer; and, where the request stays valid, the effort of
the profile where the caller names none, and prompt caching where the caller set none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from catalog import pricing
from integrations.providers.anthropic import features, server_tools
from integrations.providers.anthropic.additions import effort_for, takes_breakpoints
from integrations.providers.anthropic.bounds import PromptBounds
from integrations.providers.anthropic.caching import is_marked, with_breakpoints_of_ours
from integrations.providers.anthropic.messages import too_long
from integrations.providers.anthropic.other_models import USES_MAX, OtherModel
from integrations.providers.anthropic.server_tools import Most
from integrations.providers.anthropic.tokens import tokens_about_by_part
from rensei.core.errors import FieldError
from rensei.dispatch.modes.base import ModelUnpriced
from rensei.gateway.body import Body
from rensei.gateway.routing import PRICED_MODES, Route

_LONG_WINDOW_BETA = "context-1m"
_LONG_WINDOW_TOKENS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """
    A body that goes upstream, and what was decided for it. `at_most` is in picodollars, None where unknown.
    `left_out` says what was not added and why, or nothing.
    """

    body: Body
    max_tokens: int
    effort: str
    effort_applied: dict[str, Any]
    left_out: str
    at_most: int | None
    input_tokens_about: int


# A model that a request names besides its own, and the judgement of it under the same mode.
Others = Sequence[tuple[OtherModel, Route]]


def prepare(body: Body, route: Route, *, others: Others = (), betas: str = "") -> Outgoing:
    """
    Make the body that goes upstream. `others` are the models that it names besides its own, and `betas` are those that
    the caller names in `anthropic-beta`.

    :raises FieldError: if it lacks what every call needs, or what bounds one that the platform pays for or bills
    :raises ModelUnpriced: if it asks the platform for something that has no price
    :raises ContextWindowExceeded: if the prompt cannot fit into the profile's window
    """
    values, entry = body.values, route.judgement.entry
    changes: dict[str, Any] = {}
    if values["model"] != entry.model_id:
        changes["model"] = entry.model_id
    max_tokens = _max_tokens(values)
    if route.max_tokens_cap is not None and max_tokens > route.max_tokens_cap:
        _check_budget(values, max_tokens=max_tokens, cap=route.max_tokens_cap)
        changes["max_tokens"] = max_tokens = route.max_tokens_cap
    _check_cap(others, route)
    bounds = PromptBounds(values, raw=body.raw, window=_window_of(route, betas))
    _check_window(body, bounds, route)
    by_part = tokens_about_by_part(values)
    applied, left_out = effort_for({**values, "max_tokens": max_tokens}, route.profile.effort, entry=entry)
    additions = {**applied, **_caching(values, route, by_part)}
    outgoing = body.with_values(**changes, **additions) if changes or additions else body
    return Outgoing(
        body=outgoing,
        max_tokens=max_tokens,
        effort=route.profile.effort if applied else "",
        effort_applied=applied,
        left_out=left_out,
        at_most=_at_most(values, route, others, bounds, max_tokens=max_tokens, betas=betas),
        input_tokens_about=sum(by_part.values()),
    )


def _max_tokens(values: dict[str, Any]) -> int:
    """:raises FieldError: if it is no number of tokens. None at all is asked for to fill the cache."""
    found = values.get("max_tokens")
    if type(found) is not int or not 0 <= found < 2**31:
        raise FieldError(pointer="/max_tokens", reason="`max_tokens` is required, and is a whole number, 0 or more.")
    return found


def _check_budget(values: dict[str, Any], *, max_tokens: int, cap: int) -> None:
    """:raises FieldError: if thinking fits into the answer that was asked for, but not into what the pool allows"""
    thinking = values.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if type(budget) is int and cap <= budget < max_tokens:
        raise FieldError(
            pointer="/thinking/budget_tokens",
            reason=f"The platform's keys allow an answer of at most {cap} tokens, thinking included. "
            "Lower `thinking.budget_tokens`.",
        )


def _check_cap(others: Others, route: Route) -> None:
    """:raises FieldError: if another model could write more than the pool's keys allow"""
    cap = route.max_tokens_cap
    for other, _ in others:
        asked = other.max_tokens
        # A fallback without a limit of its own has that of the request.
        if cap is not None and (asked > cap if asked is not None else other.consulted):
            raise FieldError(pointer=f"{other.pointer}/max_tokens", reason=f"Give a `max_tokens` of at most {cap}.")


def _window_of(route: Route, betas: str) -> int | None:
    """The window of the model that serves, or the larger one that a beta may open on older models."""
    window = route.judgement.entry.context_window_tokens
    return max(window, _LONG_WINDOW_TOKENS) if window and _LONG_WINDOW_BETA in betas else window


def _check_window(body: Body, bounds: PromptBounds, route: Route) -> None:
    window = route.judgement.request.context_window_tokens
    # A token has at least one byte, so a short text need not be counted.
    if window is not None and len(body.raw) >= window and bounds.at_least >= window:
        raise too_long(input_tokens=bounds.at_least, window=window, counted="at least")


def _caching(values: dict[str, Any], route: Route, by_part: dict[str, int]) -> dict[str, Any]:
    """The members that get breakpoints. A body too short for any, or with its own, stays as it is."""
    capabilities = route.judgement.entry.capabilities
    too_short = sum(by_part.values()) < capabilities.get("minCacheTokens", 0)
    if too_short or is_marked(values) or not takes_breakpoints(values) or not _is_regular(values):
        return {}
    marked = with_breakpoints_of_ours(
        values, by_part, prompt_caching=route.profile.prompt_caching, capabilities=capabilities
    )
    return {name: marked[name] for name in ("tools", "system", "messages") if marked.get(name) != values.get(name)}


def _at_most(
    values: dict[str, Any], route: Route, others: Others, bounds: PromptBounds, *, max_tokens: int, betas: str
) -> int | None:
    """
    The most that the call may cost. Where the platform pays or bills, everything in it has a price and an end.

    One model answers, whichever is the dearest of those that may. Those that are consulted come to it.
    """
    if route.mode not in PRICED_MODES:
        return None
    server_tools.check_limits(bounds.tools)
    most = bounds.of_call(max_tokens=max_tokens, max_output_tokens=route.judgement.entry.max_output_tokens)
    unpriced = features.unpriced_feature(values, bounds.tools)
    if most.web_searches and any(
        band.web_search is None for each in [route, *(its_route for _, its_route in others)] for band in each.bands
    ):
        unpriced = unpriced or f"{route.judgement.entry.model_id} as this request asks for it"
    if unpriced:
        raise ModelUnpriced(what=f"'{unpriced}'", mode=route.mode.value)
    answers = [_answer(values, route, most)]
    for other, its_route in others:
        if not other.consulted:
            entry = its_route.judgement.entry
            its_most = bounds.for_window(_window_of(its_route, betas)).of_call(
                max_tokens=max(max_tokens, other.max_tokens or 0), max_output_tokens=entry.max_output_tokens
            )
            fast = {**values, "speed": "fast"} if other.may_be_fast else values
            answers.append(_answer(fast, its_route, its_most))
    consulted = [(other, its_route) for other, its_route in others if other.consulted]
    return max(answers) + sum(_consultations(values, other, its_route, betas) for other, its_route in consulted)


def _answer(values: dict[str, Any], route: Route, most: Most) -> int:
    """The most that the answer of one model may cost."""
    factor = features.highest_factor(values)
    return pricing.worst_case(
        [band.times(factor) for band in route.bands],
        prompt_tokens=most.prompt_tokens,
        max_tokens=most.output_tokens,
        web_searches=most.web_searches,
    )


def _consultations(values: dict[str, Any], other: OtherModel, route: Route, betas: str) -> int:
    """
    The most that consulting a model may cost: each time it may read as much as its window holds.

    :raises FieldError: if the request does not say how often it may be consulted
    :raises ModelUnpriced: if the size of its window or of its answers is not known
    """
    entry = route.judgement.entry
    output = other.max_tokens or entry.max_output_tokens
    if other.uses is None:
        raise FieldError(
            pointer=f"{other.pointer}/max_uses",
            reason=f"With a key of the platform, a tool that consults a model takes a `max_uses` from 1 to {USES_MAX}, "
            "so that what the call may cost is known before it is made. Add it, or use byok with a key of your own.",
        )
    window = _window_of(route, betas)
    if window is None or output is None:
        raise ModelUnpriced(what=f"'{entry.model_id}', whose limits are not known,", mode=route.mode.value)
    factor = features.highest_factor(values)
    prices = [band.times(factor) for band in route.bands]
    return other.uses * pricing.worst_case(prices, prompt_tokens=window, max_tokens=output)


def _is_regular(values: dict[str, Any]) -> bool:
    """Whether the parts that may be marked have their shape. What has not is the provider's to refuse."""

    def is_content(content: object) -> bool:
        return isinstance(content, str) or (
            isinstance(content, list) and all(isinstance(block, dict) for block in content)
        )

    messages, tools = values.get("messages"), values.get("tools", [])
    return (
        isinstance(messages, list)
        and all(isinstance(message, dict) and is_content(message.get("content")) for message in messages)
        and is_content(tools)
        and not isinstance(tools, str)
        and is_content(values.get("system", ""))
    )
