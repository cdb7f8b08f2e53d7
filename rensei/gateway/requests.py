"""
Build the body for the provider: the caller's body, with the few changes that Rensei makes.

The model becomes the served model, and `max_tokens` is limited to the cap of the key pool. If the request stays valid,
the profile's effort and prompt caching are added where the caller set none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catalog import pricing
from integrations.providers.anthropic import features, server_tools
from integrations.providers.anthropic.additions import effort_for, takes_breakpoints
from integrations.providers.anthropic.answer_size import answer_bytes_max, may_cite
from integrations.providers.anthropic.bounds import PromptBounds
from integrations.providers.anthropic.caching import is_marked, with_breakpoints_of_ours
from integrations.providers.anthropic.known_headers import (
    BETAS,
    LONG_OUTPUT,
    LONG_WINDOW,
    UNDOCUMENTED,
    betas_in,
    unknown_headers,
)
from integrations.providers.anthropic.messages import too_long
from integrations.providers.anthropic.other_models import USES_MAX, OtherModel
from integrations.providers.anthropic.server_tools import Most
from integrations.providers.anthropic.tokens import tokens_about_by_part
from integrations.providers.anthropic.usage import asked_factors
from rensei.core.errors import FieldError
from rensei.core.unknown import note_unknown
from rensei.dispatch.admission import unknown_parts
from rensei.dispatch.admission.unknown_parts import Names, printable, unpriced
from rensei.gateway.body import Body
from rensei.gateway.routing import Route


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """
    A body for the provider, and the values decided for it. `at_most` is in picodollars, None if unknown.
    `left_out` describes what was not added and why; it may be empty. `rate_limit` names the provider's limit that the
    call counts in; it is empty if that is the served model's usual one.
    """

    body: Body
    max_tokens: int
    effort: str
    effort_applied: dict[str, Any]
    left_out: str
    at_most: int | None
    input_tokens_about: int
    streams: bool
    asked: Mapping[str, object]
    answer_bytes_max: int
    rate_limit: str


# The additional models that a request names, each with its decision under the same mode.
Others = Sequence[tuple[OtherModel, Route]]
Betas = frozenset[str]
_NO_HEADERS: Mapping[str, str] = {}


def prepare(
    body: Body, route: Route, *, others: Others = (), headers: Mapping[str, str] = _NO_HEADERS, unknown: Names = ()
) -> Outgoing:
    """
    Build the body for the provider. `others` are the additional models that it names, `headers` are the caller's, and
    `unknown` is what is not known of them and of the body.

    :raises FieldError: if a required value is missing, or a limit that bounds the cost of a call where it is held
    :raises ModelUnpriced, CostNotBounded: if such a call uses something that has no price
    :raises ContextWindowExceeded: if the prompt cannot fit into the profile's window
    """
    values, entry = body.values, route.judgement.entry
    require_known(unknown, headers, route)
    betas = betas_in(headers)
    changes: dict[str, Any] = {}
    if values["model"] != entry.model_id:
        changes["model"] = entry.model_id
    max_tokens = _max_tokens(values)
    cap = min([each.max_tokens_cap for each in (route, *_routes(others)) if each.max_tokens_cap], default=None)
    if cap is not None and max_tokens > cap:
        _check_budget(values, max_tokens=max_tokens, cap=cap)
        changes["max_tokens"] = max_tokens = cap
    _check_cap(others, cap)
    bounds = PromptBounds(values, raw=body.raw, unknown=body.unknown, tools=body.tools, window=_window_of(route, betas))
    _check_window(body, bounds, route)
    by_part = tokens_about_by_part(values)
    applied, left_out = _effort_for(values, route, max_tokens=max_tokens)
    additions = {**applied, **_caching(body, route, by_part)}
    outgoing = body.with_values(**changes, **additions) if changes or additions else body
    return Outgoing(
        body=outgoing,
        max_tokens=max_tokens,
        effort=route.profile.effort if applied else "",
        effort_applied=applied,
        left_out=left_out,
        at_most=_at_most(body, route, others, bounds, max_tokens=max_tokens, betas=betas),
        input_tokens_about=sum(by_part.values()),
        streams=values.get("stream") is True,
        asked=asked_factors(values),
        answer_bytes_max=answer_bytes_max(
            values,
            [tool for _, tool in body.tools],
            max_tokens=max_tokens,
            has_unknown=bool(unknown),
            # The blocks are walked only where one may have the member.
            may_cite=body.may_hold(b"citations") and may_cite(values),
        ),
        rate_limit=features.own_rate_limit(entry.model_id, values, betas),
    )


def unknown_in(body: Body, headers: Mapping[str, str], query: str) -> Names:
    """List what is not known in a request, and count it by its name, whether it is refused or not."""
    unknown = [*body.unknown.names, *unknown_headers(headers, query)]
    for kind, name in unknown:
        note_unknown(kind, name)
    return unknown


def require_known(names: Names, headers: Mapping[str, str], route: Route) -> None:
    """
    Refuse what is not known where the cost of a call is held before it; an unknown beta also where a policy denies some
    models, because it may make the provider run one.

    :raises FieldError: naming a beta
    :raises ModelUnpriced, CostNotBounded: naming one other part, because it may cost more than is held
    """
    if not (names and (route.is_cost_held or route.is_judged)):
        return
    if betas := sorted(betas_in(headers) - BETAS - UNDOCUMENTED):
        # As the API refuses it. Claude Code leaves out the beta behind `capability_rejected`, and goes on.
        name = printable(betas[0])
        because = "what it may cost cannot be held of the API token's cap"
        if route.is_by_platform_key:
            because = "the platform's keys do not sign it"
        elif not route.is_cost_held:
            because = f"it could reach a model that an access policy denies to {route.mode.value}"
        reason = (
            f"Unexpected value `{name}` for the `anthropic-beta` header. This version of Rensei does not know it, so "
            f"{because} (capability_rejected: beta_header:{name})."
        )
        raise FieldError(pointer="/anthropic-beta", reason=reason)
    if route.is_cost_held:
        # Unknown headers are not forwarded then, so they cost nothing.
        costly = [each for each in names if each[0] != "header" or each[1].startswith("anthropic-version")]
        unknown_parts.require_known(costly, mode=route.mode)


def _max_tokens(values: dict[str, Any]) -> int:
    """:raises FieldError: if it is not a number of tokens. 0 is valid: such a request only fills the cache"""
    found = values.get("max_tokens")
    if type(found) is not int or not 0 <= found < 2**31:
        raise FieldError(pointer="/max_tokens", reason="`max_tokens` is required, and is a whole number, 0 or more.")
    return found


def _check_budget(values: dict[str, Any], *, max_tokens: int, cap: int) -> None:
    """:raises FieldError: if the thinking budget fits into the requested `max_tokens`, but not into the pool's cap"""
    thinking = values.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if type(budget) is int and cap <= budget < max_tokens:
        raise FieldError(
            pointer="/thinking/budget_tokens",
            reason=f"The platform's keys allow an answer of at most {cap} tokens, thinking included. "
            "Lower `thinking.budget_tokens`.",
        )


def _effort_for(values: dict[str, Any], route: Route, *, max_tokens: int) -> tuple[dict[str, Any], str]:
    """Choose what the profile's effort adds to the request, if it has one. The cap is applied to `max_tokens` here."""
    effort = route.profile.effort
    if not effort:
        return {}, ""
    return effort_for({**values, "max_tokens": max_tokens}, effort, entry=route.judgement.entry)


def _routes(others: Others) -> list[Route]:
    return [route for _, route in others]


def _check_cap(others: Others, cap: int | None) -> None:
    """:raises FieldError: if an additional model could write more than the cap of the key pool"""
    for other, _ in others:
        asked = other.max_tokens
        # A fallback without its own limit has the limit of the request.
        if cap is not None and (asked > cap if asked is not None else other.consulted):
            raise FieldError(pointer=f"{other.pointer}/max_tokens", reason=f"Give a `max_tokens` of at most {cap}.")


def _window_of(route: Route, betas: Betas) -> int | None:
    """Return the window of the served model, or the larger one that a beta enables on older models."""
    return _larger(route.judgement.entry.context_window_tokens, LONG_WINDOW, betas)


def _output_of(route: Route, betas: Betas) -> int | None:
    """Return the output limit of the served model, or the larger one that a beta enables."""
    return _larger(route.judgement.entry.max_output_tokens, LONG_OUTPUT, betas)


def _larger(limit: int | None, by_beta: Mapping[str, int], betas: Betas) -> int | None:
    return max([limit, *(by_beta[beta] for beta in by_beta.keys() & betas)]) if limit and betas else limit


def _check_window(body: Body, bounds: PromptBounds, route: Route) -> None:
    window = route.judgement.request.context_window_tokens
    # A token has at least one byte, so a short text does not have to be counted.
    if window is not None and len(body.raw) >= window and bounds.at_least >= window:
        raise too_long(input_tokens=bounds.at_least, window=window, counted="at least")


def _caching(body: Body, route: Route, by_part: dict[str, int]) -> dict[str, Any]:
    """Return the members that get breakpoints. A body that is too short, or has its own breakpoints, is unchanged."""
    values, capabilities = body.values, route.judgement.entry.capabilities
    too_short = sum(by_part.values()) < capabilities.get("minCacheTokens", 0)
    if too_short or (body.may_hold(b"cache_control") and is_marked(values)):
        return {}
    if not takes_breakpoints(values) or not _is_regular(values):
        return {}
    marked = with_breakpoints_of_ours(
        values, by_part, prompt_caching=route.profile.prompt_caching, capabilities=capabilities
    )
    return {name: marked[name] for name in ("tools", "system", "messages") if marked.get(name) != values.get(name)}


def _at_most(
    body: Body, route: Route, others: Others, bounds: PromptBounds, *, max_tokens: int, betas: Betas
) -> int | None:
    """
    Return the maximum cost of the call. Where it is held, everything in the call must have a price and a bound.

    One model answers: the most expensive possible one is assumed. The cost of consulted models is added.
    """
    if not route.is_cost_held:
        return None
    values = body.values
    server_tools.check_limits(body.tools)
    most = bounds.of_call(max_tokens=max_tokens, max_output_tokens=_output_of(route, betas))
    feature = features.unpriced_feature(values, bounds.tools)
    if most.web_searches and any(band.web_search is None for each in (route, *_routes(others)) for band in each.bands):
        feature = feature or f"{route.judgement.entry.model_id} as this request asks for it"
    if feature == "thread":
        raise _without_thread()
    if feature:
        raise unpriced(f"'{feature}'", mode=route.mode)
    answers = [_answer(values, route, most)]
    for other, its_route in others:
        if not other.consulted:
            its_most = bounds.for_window(_window_of(its_route, betas)).of_call(
                max_tokens=max(max_tokens, other.max_tokens or 0), max_output_tokens=_output_of(its_route, betas)
            )
            fast = {**values, "speed": "fast"} if other.may_be_fast else values
            answers.append(_answer(fast, its_route, its_most))
    consulted = [(other, its_route) for other, its_route in others if other.consulted]
    return max(answers) + sum(_consultations(values, other, its_route, betas) for other, its_route in consulted)


def _without_thread() -> FieldError:
    """
    Refuse a thread, whose earlier messages are at the provider and so have no bound.

    It is the API's own refusal of a request that it cannot thread, after which the tool runners of Anthropic's SDKs go
    on without one: https://platform.claude.com/docs/en/api/errors
    """
    refusal = FieldError(
        pointer="/thread",
        reason="A thread keeps earlier messages at the provider, so what this call may cost cannot be held before it "
        "is made. Leave out `thread` and send the whole conversation, or use byok without a cap.",
    )
    refusal.extra["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["held_cost"]}
    return refusal


def _answer(values: dict[str, Any], route: Route, most: Most) -> int:
    """Return the maximum cost of the answer of one model."""
    return pricing.worst_case(
        route.bands_for(features.price_factors_of(values)),
        prompt_tokens=most.prompt_tokens,
        max_tokens=most.output_tokens,
        web_searches=most.web_searches,
    )


def _consultations(values: dict[str, Any], other: OtherModel, route: Route, betas: Betas) -> int:
    """
    Return the maximum cost of consulting a model: each time it may read a full window.

    :raises FieldError: if the request does not limit how often the model may be consulted
    :raises ModelUnpriced, CostNotBounded: if the size of its window or of its answers is unknown
    """
    entry = route.judgement.entry
    output = other.max_tokens or _output_of(route, betas)
    if other.uses is None:
        raise FieldError(
            pointer=f"{other.pointer}/max_uses",
            reason="Where the cost of a call is held, a tool that consults a model takes a `max_uses` from 1 to "
            f"{USES_MAX}, so that what the call may cost is known before it is made. Add it, or use byok without a "
            "cap.",
        )
    window = _window_of(route, betas)
    if window is None or output is None:
        raise unpriced(f"'{entry.model_id}', whose limits are not known,", mode=route.mode)
    prices = route.bands_for(features.price_factors_of(values))
    return other.uses * pricing.worst_case(prices, prompt_tokens=window, max_tokens=output)


def _is_regular(values: dict[str, Any]) -> bool:
    """Return whether the parts that may get breakpoints have a valid shape. The provider refuses invalid ones."""
    messages, tools = values.get("messages"), values.get("tools", [])
    return (
        isinstance(messages, list)
        and all(type(message) is dict and _is_content(message.get("content")) for message in messages)
        and not isinstance(tools, str)
        and _is_content(tools)
        and _is_content(values.get("system", ""))
    )


def _is_content(content: object) -> bool:
    return type(content) is str or (type(content) is list and all(type(block) is dict for block in content))
