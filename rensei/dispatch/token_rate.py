"""
Input and output tokens of an organization by the minute: of every call that is settled, wherever it was made.

What a call will use is not known before it has ended, so the limit is passed by what the calls under way use.
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
    """Count what calls of organizations have used, after it was committed."""
    _, seconds = _rate()
    for org_id, usage in used:
        if tokens := tokens_of(usage):
            rates.count(key_of(org_id), seconds=seconds, by=tokens)


def require_left(org_id: str) -> LimitUsage:
    """
    Tell how an organization stands.

    :raises RateLimited: if it has used up its tokens
    """
    most, seconds = _rate()
    standing = LimitUsage(limit=most, window=rates.count(key_of(org_id), seconds=seconds, by=0))
    if standing.remaining == 0:
        raise rates.refusal(standing.window.ends_at)
    return standing


def _rate() -> tuple[int, int]:
    most, seconds = SimpleRateThrottle.parse_rate(None, settings.RENSEI_GATEWAY_TOKENS["org"])  # type: ignore[arg-type]
    assert most is not None
    assert seconds is not None
    return most, seconds
