"""Rate limits that hold under concurrent requests, and say truly when to come back."""

from typing import TYPE_CHECKING

from django.core.cache import cache
from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle

if TYPE_CHECKING:
    # The views read their default throttles from here while they are being imported.
    from rest_framework.views import APIView


class WindowThrottle(SimpleRateThrottle):
    """
    At most N requests in a window, which opens with the caller's first one.

    The stock class reads a list, appends and writes it back, so requests at the same moment pass together.
    Here each one takes its number by an atomic increment.
    """

    num_requests: int | None
    duration: int | None
    ends_at: float

    def allow_request(self, request: Request, view: "APIView") -> bool:
        key = self.get_cache_key(request, view)
        if self.rate is None or key is None:
            return True
        assert self.num_requests is not None
        assert self.duration is not None
        now = self.timer()
        self.ends_at = cache.get_or_set(  # type: ignore[assignment]
            f"{key}:ends", now + self.duration, timeout=self.duration
        )
        counter = f"{key}:{self.ends_at}"
        cache.add(counter, 0, timeout=self.duration * 2)
        return bool(cache.incr(counter) <= self.num_requests)

    def wait(self) -> float:
        return max(0.0, self.ends_at - self.timer())
