"""How often, and how many at once: counted in this process, because the gateway waits for no cache server."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from rest_framework.throttling import SimpleRateThrottle

from rensei.core.errors import RateLimited
from rensei.orgs.access import Access

COUNTERS_MAX = 100_000


class Limits:
    """The rates of each token and organization, and the calls of each organization that are under way."""

    def __init__(self) -> None:
        self._windows = {name: _Window(rate) for name, rate in settings.RENSEI_GATEWAY_RATES.items()}
        self._live: Counter[str] = Counter()

    @contextmanager
    def within(self, access: Access) -> Iterator[None]:
        """:raises RateLimited: if the token or its organization asks too often, or has too many calls under way"""
        assert access.token is not None
        self._windows["token"].count(access.token.id)
        self._windows["org"].count(access.org.id)
        if self._live[access.org.id] >= settings.RENSEI_GATEWAY_CALLS_AT_ONCE:
            raise RateLimited(seconds=1, extra={"retryAfter": 1})
        self._live[access.org.id] += 1
        try:
            yield
        finally:
            self._live[access.org.id] -= 1
            if not self._live[access.org.id]:
                del self._live[access.org.id]


class _Window:
    """At most so many requests of one key in a window of time."""

    def __init__(self, rate: str) -> None:
        most, seconds = SimpleRateThrottle.parse_rate(self, rate)  # type: ignore[arg-type]
        assert most is not None
        assert seconds is not None
        self._most, self._seconds = most, seconds
        self._counts: Counter[str] = Counter()
        self._ends = 0.0

    def count(self, key: str) -> None:
        """:raises RateLimited: if it is one too many"""
        now = time.monotonic()
        if now >= self._ends or len(self._counts) > COUNTERS_MAX:
            self._counts.clear()
            self._ends = now + self._seconds
        self._counts[key] += 1
        if self._counts[key] > self._most:
            seconds = max(1, math.ceil(self._ends - now))
            raise RateLimited(seconds=seconds, extra={"retryAfter": seconds})
