"""
The rate of input and output tokens of an organization, over all of its settled calls.

The usage of a call is unknown before its end, so the calls in progress can exceed the limit by their usage.
"""

from collections.abc import Iterable

from django.conf import settings
from rest_framework.throttling import SimpleRateThrottle

from rensei.core.rates import LimitUsage, rates
from rensei.core.usage import Usage


def key_of(org_id: str) -> str:
    return f"tokens-org:{org_id}"


def tokens_of(usage: Usage) -> int:
    return usage.prompt_tokens + usage.output_tokens


def note(used: Iterable[tuple[str, Usage]]) -> None:
    """Count the usage of organizations' calls, after its commit."""
    _, seconds = _rate()
    for org_id, usage in used:
        if tokens := tokens_of(usage):
            rates.count(key_of(org_id), seconds=seconds, by=tokens)


def require_left(org_id: str) -> LimitUsage:
    """
    Return the token usage of an organization that has tokens left.

    :raises RateLimited: if the organization has used up its tokens
    """
    usage = usage_of(org_id)
    if usage.remaining == 0:
        raise rates.refusal(usage.window.ends_at)
    return usage


def usage_of(org_id: str) -> LimitUsage:
    """Read the token usage of an organization, without counting anything."""
    most, seconds = _rate()
    return LimitUsage(limit=most, window=rates.count(key_of(org_id), seconds=seconds, by=0))


def _rate() -> tuple[int, int]:
    most, seconds = SimpleRateThrottle.parse_rate(None, settings.RENSEI_GATEWAY_TOKENS["org"])  # type: ignore[arg-type]
    assert most is not None
    assert seconds is not None
    return most, seconds
