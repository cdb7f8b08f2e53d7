"""
How often, how much, how many at once, and how large together: counted in memory, as a call waits for no other process.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.conf import settings
from rest_framework.throttling import SimpleRateThrottle

from rensei.core.errors import RateLimited
from rensei.core.limits import MIB
from rensei.core.rates import Standing, headers_of, rates
from rensei.gateway.answers import Headers
from rensei.orgs.access import Access


class Limits:
    """The rates of each token and organization, and the calls of each organization that are under way."""

    def __init__(self) -> None:
        self._calls = {name: _Rate(f"gateway-{name}", rate) for name, rate in settings.RENSEI_GATEWAY_RATES.items()}
        self._tokens = {name: _Rate(f"tokens-{name}", rate) for name, rate in settings.RENSEI_GATEWAY_TOKENS.items()}
        self._live: Counter[str] = Counter()
        self._bodies: Counter[str] = Counter()
        self._body_bytes = 0

    @contextmanager
    def within(self, access: Access, headers: Headers) -> Iterator[None]:
        """
        Hold a call to the limits, and add to the headers of its answer how the caller stands.

        :raises RateLimited: if the token or its organization calls too often, has used too many tokens lately, or has
            too many calls under way
        """
        assert access.token is not None
        of_caller = {"token": access.token.id, "org": access.org.id}
        # What a call will use is not known before. The tokens of those that have ended must leave some.
        tokens = [self._tokens[name].look(caller) for name, caller in of_caller.items()]
        headers += _headers("tokens", tokens)
        _require([standing for standing in tokens if standing.remaining == 0])
        if self._live[access.org.id] >= settings.RENSEI_GATEWAY_CALLS_AT_ONCE:
            raise RateLimited(seconds=1, extra={"retryAfter": 1})
        calls = []
        for name, caller in of_caller.items():
            standing = self._calls[name].count(caller)
            calls.append(standing)
            if standing.window.total > standing.limit:
                headers += _headers("requests", calls)
                _require([standing])
        headers += _headers("requests", calls)
        self._live[access.org.id] += 1
        try:
            yield
        finally:
            self._live[access.org.id] -= 1
            if not self._live[access.org.id]:
                del self._live[access.org.id]

    @contextmanager
    def body(self, org_id: str) -> Iterator[Callable[[int], None]]:
        """
        Give what counts the bytes of a call's body as they come, for as long as the call holds them.

        :raises RateLimited: from there, if the bodies that its organization, or all of them, have under way are too
            large together
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
        """Count what a call has used. For the organization, its settlement counts it."""
        self._tokens["token"].count(token_id, by=tokens)


class _Rate:
    """One limit, for each of those whom it holds for."""

    def __init__(self, kind: str, rate: str) -> None:
        most, seconds = SimpleRateThrottle.parse_rate(self, rate)  # type: ignore[arg-type]
        assert most is not None
        assert seconds is not None
        self._kind, self._most, self._seconds = kind, most, seconds

    def look(self, caller: str) -> Standing:
        return self.count(caller, by=0)

    def count(self, caller: str, *, by: int = 1) -> Standing:
        window = rates.count(f"{self._kind}:{caller}", seconds=self._seconds, by=by)
        return Standing(limit=self._most, window=window)


def _headers(kind: str, standings: list[Standing]) -> Headers:
    return [(name.encode(), value.encode()) for name, value in headers_of(kind, standings).items()]


def _require(over: list[Standing]) -> None:
    if over:
        raise rates.refusal(max(standing.window.ends_at for standing in over))
