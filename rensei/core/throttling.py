"""Rate limits of REST and pages that hold under concurrent requests, with an exact time to retry."""

from functools import cache
from typing import TYPE_CHECKING

from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle

from rensei.core.rate_store import Window
from rensei.core.rates import LimitUsage, rates

if TYPE_CHECKING:
    # The views read their default throttles from here while they are being imported.
    from rest_framework.views import APIView


@cache
def parse_rate(rate: str) -> tuple[int, int]:
    """Return the number of a rate such as `60/min`, and the seconds of its window."""
    most, seconds = SimpleRateThrottle.parse_rate(None, rate)  # type: ignore[arg-type]
    assert most is not None
    assert seconds is not None
    return most, seconds


class WindowThrottle(SimpleRateThrottle):
    """
    At most N requests in a window, which opens with the caller's first one.

    The stock class reads a list, appends and writes it back, so concurrent requests pass together.
    """

    num_requests: int | None
    duration: int | None
    # Whether each request is counted in the database at once, or together with others a moment later.
    is_exact = False
    window: Window

    def allow_request(self, request: Request, view: "APIView") -> bool:
        key = self.get_cache_key(request, view)
        return key is None or self.allow(key)

    def allow(self, key: str) -> bool:
        """Count one more request of a caller, and return whether it is within the limit."""
        if self.rate is None:
            return True
        assert self.num_requests is not None
        assert self.duration is not None
        self.window = rates.known(key)
        if self.window.total <= self.num_requests:
            # A caller over the limit is refused without a statement for each try.
            count = rates.count_exactly if self.is_exact else rates.count
            self.window = count(key, seconds=self.duration)
        return self.window.total <= self.num_requests

    def wait(self) -> float:
        return max(0.0, self.window.ends_at - rates.timer())

    @property
    def standing(self) -> LimitUsage:
        assert self.num_requests is not None
        return LimitUsage(limit=self.num_requests, window=self.window)
