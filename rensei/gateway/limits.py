"""
Limits of calls, tokens, concurrency and total body size. They are in memory: a call must not wait for another process.
"""

import asyncio
from collections import Counter
from types import TracebackType
from typing import Self

from django.conf import settings

from rensei.core.errors import RateLimited
from rensei.core.limits import MIB
from rensei.core.rates import LimitUsage, header_lines, rates
from rensei.core.shares import ByteShares
from rensei.core.throttling import parse_rate
from rensei.dispatch.run_tokens import RunToken
from rensei.gateway.answers import Headers
from rensei.gateway.threads import Turns
from rensei.orgs.access import Access

_CALLERS = ("token", "org")


class Limits:
    """The rates of each API token and organization, and the calls and bodies in progress of each organization."""

    def __init__(self) -> None:
        calls, tokens = settings.RENSEI_GATEWAY_RATES, settings.RENSEI_GATEWAY_TOKENS
        self._calls_of_token, self._calls_of_org = (_Rate(f"gateway-{name}", calls[name]) for name in _CALLERS)
        self._tokens_of_token, self._tokens_of_org = (_Rate(f"tokens-{name}", tokens[name]) for name in _CALLERS)
        self._most = [
            rate.most for rate in (self._calls_of_token, self._calls_of_org, self._tokens_of_token, self._tokens_of_org)
        ]
        self.live: Counter[str] = Counter()
        self.bodies = ByteShares()
        self.large_answers = Turns()

    def within(self, access: Access, headers: Headers) -> "LiveLimits":
        """
        Apply the limits to a call, and add the caller's usage of them to the headers of its response.

        Returns the context in which the call is in progress.

        :raises RateLimited: if the API token or its organization calls too often or has recently used too many tokens,
            or the organization has too many calls in progress
        """
        assert access.token is not None
        if isinstance(access.token, RunToken):
            # The limits of its run hold for a queued run: none is refused for what its organization calls directly.
            return LiveLimits(self, access.org.id, is_counted=False)
        token_id, org_id = access.token.id, access.org.id
        # The usage of a call is unknown in advance, so only the tokens of ended calls are checked.
        of_token, of_org, *tokens = self._count(token_id, org_id, calls=1)
        headers += header_lines("tokens", tokens)
        over = [usage for usage in tokens if not usage.remaining]
        is_busy = self.live[org_id] >= settings.RENSEI_GATEWAY_CALLS_AT_ONCE
        if over or is_busy:
            self._count(token_id, org_id, calls=-1)
            raise _refusal(over) if over else RateLimited(seconds=1, extra={"retryAfter": 1})
        headers += header_lines("requests", [of_token, of_org])
        if of_token.is_over:
            # A call refused for one token must not count for its organization.
            rates.count_each([self._calls_of_org.counted(org_id, -1)])
            raise _refusal([of_token])
        if of_org.is_over:
            raise _refusal([of_org])
        return LiveLimits(self, org_id)

    def _count(self, token_id: str, org_id: str, *, calls: int) -> list[LimitUsage]:
        """Count calls for both together, and return their usage: calls of token and organization, tokens of both."""
        windows = rates.count_each(
            [
                self._calls_of_token.counted(token_id, calls),
                self._calls_of_org.counted(org_id, calls),
                self._tokens_of_token.counted(token_id, 0),
                self._tokens_of_org.counted(org_id, 0),
            ]
        )
        return [LimitUsage(most, window) for most, window in zip(self._most, windows, strict=True)]

    def use(self, access: Access, *, tokens: int) -> None:
        """Count the usage of a call for its API token. For the organization, the settlement counts it."""
        assert access.token is not None
        if not isinstance(access.token, RunToken):
            rates.count_each([self._tokens_of_token.counted(access.token.id, tokens)])


class LiveLimits:
    """A call in progress, and the bytes of its body and answer, until the context ends."""

    __slots__ = ("_held", "_is_counted", "_limits", "_org_id", "_turn")

    def __init__(self, limits: Limits, org_id: str, *, is_counted: bool = True) -> None:
        self._limits, self._org_id, self._is_counted = limits, org_id, is_counted
        self._held = 0
        self._turn: asyncio.Lock | None = None

    def hold(self, size: int) -> None:
        """
        Count bytes of the call's body as they arrive.

        :raises RateLimited: if the bodies in progress of the organization, or of all organizations, are together too
            large
        """
        if not self._take(size):
            raise RateLimited(seconds=1, extra={"retryAfter": 1})

    async def hold_answer(self, size: int) -> None:
        """
        Count bytes of the call's answer as they arrive.

        An answer is billed, so it is not refused where there is no room: one of the organization is read nevertheless,
        and the others wait for it.
        """
        if self._turn is None and not self._take(size):
            turn = self._limits.large_answers.of(self._org_id)
            await turn.acquire()
            self._turn = turn

    def _take(self, size: int) -> bool:
        most, of_all = settings.RENSEI_GATEWAY_BODY_MIB_ORG * MIB, settings.RENSEI_GATEWAY_BODY_MIB * MIB
        is_taken = self._limits.bodies.take(self._org_id, size, most=most, of_all=of_all)
        self._held += size if is_taken else 0
        return is_taken

    def __enter__(self) -> Self:
        self._limits.live[self._org_id] += self._is_counted
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        limits, org_id = self._limits, self._org_id
        limits.bodies.leave(org_id, self._held)
        if self._turn is not None:
            self._turn.release()
        limits.live[org_id] -= self._is_counted
        if not limits.live[org_id]:
            del limits.live[org_id]


class _Rate:
    """One rate limit, counted separately for each caller."""

    def __init__(self, kind: str, rate: str) -> None:
        self._kind = kind
        self.most, self._seconds = parse_rate(rate)

    def counted(self, caller: str, by: int) -> tuple[str, float, int]:
        return f"{self._kind}:{caller}", self._seconds, by


def _refusal(over: list[LimitUsage]) -> RateLimited:
    return rates.refusal(max(usage.window.ends_at for usage in over))
