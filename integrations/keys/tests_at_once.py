"""A limit of concurrent key tests for each organization, because each test waits for a provider."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rensei.core.errors import RateLimited
from rensei.core.limits import limit

AT_ONCE = limit(
    4,
    "tests",
    what="Tests of keys under way, each organization and process",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`",
)
RETRY_AFTER_SECONDS = 5

_lock = threading.Lock()
_under_way: Counter[str] = Counter()


@contextmanager
def under_way(org_id: str) -> Iterator[None]:
    """:raises RateLimited: if the organization's limit of concurrent tests in this process is reached"""
    with _lock:
        if _under_way[org_id] >= AT_ONCE:
            raise RateLimited(seconds=RETRY_AFTER_SECONDS, extra={"retryAfter": RETRY_AFTER_SECONDS})
        _under_way[org_id] += 1
    try:
        yield
    finally:
        with _lock:
            _under_way[org_id] -= 1
            if not _under_way[org_id]:
                del _under_way[org_id]
