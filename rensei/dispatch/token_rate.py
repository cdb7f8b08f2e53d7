"""
The rates of input and output tokens of an organization: over all of its settled calls, and over those that were signed
with keys of the platform, whose limits at the provider all organizations share.

The usage of a call is unknown before its end, so the calls in progress can exceed a limit by their usage.
"""

from collections.abc import Iterable

from django.conf import settings
from rest_framework.throttling import SimpleRateThrottle

from rensei.core.auth_modes import PLATFORM_MODES, AuthMode
from rensei.core.rates import LimitUsage, rates
from rensei.core.usage import Usage


def key_of(org_id: str, *, platform: bool = False) -> str:
    return f"tokens-platform:{org_id}" if platform else f"tokens-org:{org_id}"


def tokens_of(usage: Usage) -> int:
    return usage.prompt_tokens + usage.output_tokens


def note(used: Iterable[tuple[str, str, Usage]]) -> None:
    """Count the usage of calls, each with its organization and mode, after its commit."""
    for org_id, mode, usage in used:
        if tokens := tokens_of(usage):
            for platform in (False, True) if mode in PLATFORM_MODES else (False,):
                _, seconds = _rate(platform=platform)
                rates.count(key_of(org_id, platform=platform), seconds=seconds, by=tokens)


def require_left(org_id: str, mode: AuthMode | None = None) -> LimitUsage:
    """
    Return the token usage of an organization that has tokens left.

    :param mode: of a call, once it is decided
    :raises RateLimited: if the organization has used up its tokens, or those under the platform's keys if they sign
    """
    usage = usage_of(org_id)
    of_platform = [usage_of(org_id, platform=True)] if mode in PLATFORM_MODES else []
    if full := [each for each in (usage, *of_platform) if each.remaining == 0]:
        raise rates.refusal(max(each.window.ends_at for each in full))
    return usage


def usage_of(org_id: str, *, platform: bool = False) -> LimitUsage:
    """Read the token usage of an organization, without counting anything."""
    most, seconds = _rate(platform=platform)
    window = rates.count(key_of(org_id, platform=platform), seconds=seconds, by=0)
    return LimitUsage(limit=most, window=window)


def _rate(*, platform: bool = False) -> tuple[int, int]:
    rate = settings.RENSEI_PLATFORM_TOKENS_ORG if platform else settings.RENSEI_GATEWAY_TOKENS["org"]
    most, seconds = SimpleRateThrottle.parse_rate(None, rate)  # type: ignore[arg-type]
    assert most is not None
    assert seconds is not None
    return most, seconds
