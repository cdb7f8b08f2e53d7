"""
What goes upstream: the caller's body as it is, but for the few things that are Rensei's to say.

These are the model that serves, the effort of the profile where the caller names none, prompt caching where the caller
set none, and the pool's cap of the answer.
"""

from dataclasses import dataclass
from typing import Any

from catalog import pricing
from catalog.pricing import UnitPrices
from integrations.providers.anthropic import features
from integrations.providers.anthropic.caching import is_marked, with_breakpoints_of_ours
from integrations.providers.anthropic.messages import effort_params, too_long, with_room_to_think
from integrations.providers.anthropic.tokens import tokens_about_by_part, tokens_at_least, tokens_at_most
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import FieldError
from rensei.dispatch.modes.base import ModelUnpriced
from rensei.gateway.body import Body
from rensei.gateway.routes import PRICED_MODES, Route

_CHOOSES_ITS_SAMPLING = ("temperature", "top_k", "top_p")
_FORCES_A_TOOL = ("any", "tool")


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A body that goes upstream, and what was decided for it. `at_most` is in picodollars, None where unknown."""

    body: Body
    max_tokens: int
    effort: str
    effort_applied: dict[str, Any]
    prices: list[UnitPrices]
    at_most: int | None
    input_tokens_about: int


def prepare(body: Body, route: Route) -> Outgoing:
    """
    Make the body that goes upstream.

    :raises FieldError: if it lacks what every call needs
    :raises ModelUnpriced: if it asks the platform for something that has no price
    :raises ContextWindowExceeded: if the prompt cannot fit into the profile's window
    """
    values = body.values
    changes: dict[str, Any] = {}
    if values["model"] != route.judgement.entry.model_id:
        changes["model"] = route.judgement.entry.model_id
    max_tokens = _max_tokens(values)
    if route.max_tokens_cap is not None and max_tokens > route.max_tokens_cap:
        changes["max_tokens"] = max_tokens = route.max_tokens_cap
    effort, applied = _effort(values, route)
    if applied:
        changes |= applied
        if (roomy := with_room_to_think(max_tokens, applied, entry=route.judgement.entry)) != max_tokens:
            changes["max_tokens"] = max_tokens = roomy
    _check_window(body, route)
    by_part = tokens_about_by_part(values)
    changes |= _caching({**values, **changes}, route, by_part)
    prices = features.prices_for(values, route.bands)
    return Outgoing(
        body=body.with_values(**changes) if changes else body,
        max_tokens=max_tokens,
        effort=effort,
        effort_applied=applied,
        prices=prices or [],
        at_most=_at_most(values, route, prices, max_tokens=max_tokens),
        input_tokens_about=sum(by_part.values()),
    )


def _max_tokens(values: dict[str, Any]) -> int:
    found = values.get("max_tokens")
    if type(found) is not int or not 0 < found < 2**31:
        raise FieldError(pointer="/max_tokens", reason="`max_tokens` is required, and is a whole number above 0.")
    return found


def _effort(values: dict[str, Any], route: Route) -> tuple[str, dict[str, Any]]:
    """The profile's own effort, where the caller says nothing of it and nothing that would contradict it."""
    effort = route.profile.effort
    config = values.get("output_config")
    says = "thinking" in values or (isinstance(config, dict) and "effort" in config)
    if not effort or says:
        return "", {}
    params = effort_params(effort, entry=route.judgement.entry)
    choice = values.get("tool_choice")
    forces = isinstance(choice, dict) and choice.get("type") in _FORCES_A_TOOL
    if "thinking" in params and (forces or any(name in values for name in _CHOOSES_ITS_SAMPLING)):
        params = {name: value for name, value in params.items() if name != "thinking"}
    if not params:
        return "", {}
    if isinstance(config, dict) and "output_config" in params:
        params["output_config"] = {**config, **params["output_config"]}
    return effort, params


def _check_window(body: Body, route: Route) -> None:
    window = route.judgement.request.context_window_tokens
    # A token has at least one byte, so a short text need not be counted.
    if window is not None and len(body.raw) >= window:
        counted = tokens_at_least(body.values)
        if counted >= window:
            raise too_long(input_tokens=counted, window=window, counted="at least")


def _caching(values: dict[str, Any], route: Route, by_part: dict[str, int]) -> dict[str, Any]:
    """The members that get breakpoints. A body too short for any, or with its own, stays as it is."""
    capabilities = route.judgement.entry.capabilities
    too_short = sum(by_part.values()) < capabilities.get("minCacheTokens", 0)
    if too_short or is_marked(values) or not _is_regular(values):
        return {}
    marked = with_breakpoints_of_ours(
        values, by_part, prompt_caching=route.profile.prompt_caching, capabilities=capabilities
    )
    return {name: marked[name] for name in ("tools", "system", "messages") if marked.get(name) != values.get(name)}


def _at_most(values: dict[str, Any], route: Route, prices: list[UnitPrices] | None, *, max_tokens: int) -> int | None:
    """The most that the call may cost. Where the platform pays or bills, everything in it has a price."""
    if route.mode not in PRICED_MODES:
        return None
    searches = features.web_searches_at_most(values)
    unpriced = features.unpriced_feature(values)
    if prices is None or (searches and any(band.web_search is None for band in prices)):
        unpriced = unpriced or f"{route.judgement.entry.model_id} as this request asks for it"
    if prices is None or unpriced:
        raise ModelUnpriced(what=f"'{unpriced}'", mode=route.mode.value)
    if route.mode is not AuthMode.METERED:
        return None
    return pricing.worst_case(
        prices, prompt_tokens=tokens_at_most(values), max_tokens=max_tokens, web_searches=searches
    )


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
