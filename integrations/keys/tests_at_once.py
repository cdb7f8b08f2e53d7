"""A limit of concurrent key tests for each organization, because each test waits for a provider."""

from collections.abc import Iterator
from contextlib import contextmanager

from rensei.core.errors import RateLimited
from rensei.core.limits import limit
from rensei.core.shares import Share

AT_ONCE = limit(
    4,
    "tests",
    what="Tests of keys under way, each organization and process",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`",
)
RETRY_AFTER_SECONDS = 5

_tests = Share(AT_ONCE)


@contextmanager
def under_way(org_id: str) -> Iterator[None]:
    """:raises RateLimited: if the organization's limit of concurrent tests in this process is reached"""
    with _tests.taken(org_id) as is_free:
        if not is_free:
            raise RateLimited(seconds=RETRY_AFTER_SECONDS, extra={"retryAfter": RETRY_AFTER_SECONDS})
        yield
