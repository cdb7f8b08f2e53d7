"""
Limits of calls, tokens, concurrency and total body size. They are in memory: a call must not wait for another process.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from django.conf import settings
from rest_framework.throttling import SimpleRateThrottle

from rensei.core.errors import RateLimited
from rensei.core.limits import MIB
from rensei.core.rates import LimitUsage, headers_of, rates
from rensei.gateway.answers import Headers
from rensei.orgs.access import Access


class Limits:
    """The rates of each API token and organization, and the calls in progress of each organization."""

    def __init__(self) -> None:
        self._calls = _Rates("gateway", settings.RENSEI_GATEWAY_RATES)
        self._tokens = _Rates("tokens", settings.RENSEI_GATEWAY_TOKENS)
        self._live: Counter[str] = Counter()
        self._bodies: Counter[str] = Counter()
        self._body_bytes = 0

    @contextmanager
    def within(self, access: Access, headers: Headers) -> Iterator[None]:
        """
        Apply the limits to a call, and add the caller's usage of them to the headers of its response.

        :raises RateLimited: if the API token or its organization calls too often or has recently used too many tokens,
            or the organization has too many calls in progress
        """
        assert access.token is not None
        token_id, org_id = access.token.id, access.org.id
        # The usage of a call is unknown in advance, so only the tokens of ended calls are checked.
        tokens = self._tokens.count(token_id, org_id, by=0)
        headers += _headers("tokens", tokens)
        _require([standing for standing in tokens if standing.remaining == 0])
        if self._live[org_id] >= settings.RENSEI_GATEWAY_CALLS_AT_ONCE:
            raise RateLimited(seconds=1, extra={"retryAfter": 1})
        calls = self._calls.count(token_id, org_id)
        headers += _headers("requests", calls)
        of_token, of_org = calls
        if of_token.is_over:
            # A call refused for one token must not count for its organization.
            self._calls.of_org.count(org_id, by=-1)
            _require([of_token])
        if of_org.is_over:
            _require([of_org])
        self._live[org_id] += 1
        try:
            yield
        finally:
            self._live[org_id] -= 1
            if not self._live[org_id]:
                del self._live[org_id]

    @contextmanager
    def body(self, org_id: str) -> Iterator[Callable[[int], None]]:
        """
        Yield a function that counts the bytes of a call's body as they arrive, until the call ends.

        :raises RateLimited: from that function, if the bodies in progress of the organization, or of all organizations,
            are together too large
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            most, of_all = settings.RENSEI_GATEWAY_BODY_MIB_ORG * MIB, settings.RENSEI_GATEWAY_BODY_MIB * MIB
            if self._bodies[org_id] + size > most or self._body_bytes + size > of_all:
                raise RateLimited(seconds=1, extra={"retryAfter": 1})
            held += size
            self._bodies[org_id] += size
            self._body_bytes += size

        try:
            yield hold
        finally:
            self._body_bytes -= held
            self._bodies[org_id] -= held
            if not self._bodies[org_id]:
                del self._bodies[org_id]

    def use(self, *, token_id: str, tokens: int) -> None:
        """Count the usage of a call for its API token. For the organization, the settlement counts it."""
        self._tokens.of_token.count(token_id, by=tokens)


class _Rates:
    """One kind of rate limit, for API tokens and for organizations."""

    def __init__(self, kind: str, settings_of: Mapping[str, str]) -> None:
        self.of_token, self.of_org = (_Rate(f"{kind}-{name}", settings_of[name]) for name in ("token", "org"))

    def count(self, token_id: str, org_id: str, *, by: int = 1) -> list[LimitUsage]:
        """Count for both together. With `by=0`, it only reads the usage."""
        token, org = self.of_token, self.of_org
        windows = rates.count_each([token.counted(token_id, by), org.counted(org_id, by)])
        return [LimitUsage(token.most, windows[0]), LimitUsage(org.most, windows[1])]


class _Rate:
    """One rate limit, counted separately for each caller."""

    def __init__(self, kind: str, rate: str) -> None:
        most, seconds = SimpleRateThrottle.parse_rate(self, rate)  # type: ignore[arg-type]
        assert most is not None
        assert seconds is not None
        self._kind, self.most, self._seconds = kind, most, seconds

    def counted(self, caller: str, by: int) -> tuple[str, float, int]:
        return f"{self._kind}:{caller}", self._seconds, by

    def count(self, caller: str, *, by: int) -> None:
        rates.count_each([self.counted(caller, by)])


def _headers(kind: str, standings: list[LimitUsage]) -> Headers:
    return [(name.encode(), value.encode()) for name, value in headers_of(kind, standings).items()]


def _require(over: list[LimitUsage]) -> None:
    if over:
        raise rates.refusal(max(standing.window.ends_at for standing in over))
