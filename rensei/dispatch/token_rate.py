"""
The rates of input and output tokens of an organization: over all of its settled calls, and over those that were signed
with keys of the platform, whose limits at the provider all organizations share.

The usage of a call is unknown before its end, so the calls in progress can exceed a limit by their usage.
"""

from collections.abc import Iterable, Sequence

from django.conf import settings

from rensei.core.auth_modes import PLATFORM_MODES, AuthMode
from rensei.core.rates import LimitUsage, rates
from rensei.core.throttling import parse_rate
from rensei.core.usage import Usage


def key_of(org_id: str, *, platform: bool = False) -> str:
    return f"tokens-platform:{org_id}" if platform else f"tokens-org:{org_id}"


def tokens_of(usage: Usage) -> int:
    return usage.prompt_tokens + usage.output_tokens


def note(used: Iterable[tuple[str, str, Usage]]) -> None:
    """Count the usage of calls, each with its organization and mode, after its commit."""
    for org_id, mode, usage in used:
        if tokens := tokens_of(usage):
            rates.count_each([_counted(org_id, platform=each, by=tokens) for each in _limits_of(mode)])


def require_left(org_id: str, mode: AuthMode | None = None) -> LimitUsage:
    """
    Return the token usage of an organization that has tokens left.

    :param mode: of a call, once it is decided
    :raises RateLimited: if the organization has used up its tokens, or those under the platform's keys if they sign
    """
    usages = _usages(org_id, _limits_of(mode))
    if full := [each for each in usages if each.remaining == 0]:
        raise rates.refusal(max(each.window.ends_at for each in full))
    return usages[0]


def usage_of(org_id: str, *, platform: bool = False) -> LimitUsage:
    """Read the token usage of an organization, without counting anything."""
    return _usages(org_id, [platform])[0]


def _limits_of(mode: str | None) -> Sequence[bool]:
    """Return which limits hold for a mode: that of all calls, and that of those under the platform's keys (True)."""
    return (False, True) if mode in PLATFORM_MODES else (False,)


def _usages(org_id: str, limits: Sequence[bool]) -> list[LimitUsage]:
    windows = rates.count_each([_counted(org_id, platform=each, by=0) for each in limits])
    return [LimitUsage(_rate(platform=each)[0], window) for each, window in zip(limits, windows, strict=True)]


def _counted(org_id: str, *, platform: bool, by: int) -> tuple[str, float, int]:
    return key_of(org_id, platform=platform), _rate(platform=platform)[1], by


def _rate(*, platform: bool = False) -> tuple[int, int]:
    return parse_rate(settings.RENSEI_PLATFORM_TOKENS_ORG if platform else settings.RENSEI_GATEWAY_TOKENS["org"])
