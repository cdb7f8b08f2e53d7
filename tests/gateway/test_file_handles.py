"""A server process that may open nothing more: no call is lost or charged twice, and it goes on when it may again."""

import http.client
import itertools
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import STANDARD_HEADERS, Answer, as_bytes, message, settled
from tests.gateway.server import Server
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

CALLERS = 20
SECONDS = 3
REFUSALS = {500, 502, 503, 504}


def open_files(server: Server) -> dict[int, set[int]]:
    """List the handles of each process that serves."""
    return {pid: {int(handle.name) for handle in Path(f"/proc/{pid}/fd").iterdir()} for pid in server.workers()}


def is_at_rest(server: Server) -> bool:
    before = open_files(server)
    time.sleep(0.5)
    return open_files(server) == before


@contextmanager
def no_more_files(server: Server) -> Iterator[None]:
    """Let the processes that serve keep what they have open, and open nothing more."""
    wait_until(lambda: is_at_rest(server), what="a server that opens and closes nothing")
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in server.workers()}
    for pid, (_, hard) in limits.items():
        first_free = next(number for number in itertools.count() if number not in open_files(server)[pid])
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free, hard))
    try:
        yield
    finally:
        for pid, limit in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)


@pytest.mark.timeout(300)
class TestAServerWithoutFileHandles:
    def test_loses_no_call_and_goes_on_when_it_has_some_again(
        self, server: Server, token: str, byok: Any, simulator: Any
    ) -> None:
        def call(number: int, *, seconds: float = 60) -> Answer | None:
            """Call on a connection of its own; None where the server did not even take it."""
            line = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=seconds)
            headers = {**STANDARD_HEADERS, "x-api-key": token}
            with closing(line), suppress(OSError, http.client.HTTPException):
                line.request("POST", "/v1/messages", as_bytes(message(f"Call {number}.")), headers)
                return Answer(line.getresponse())
            return None

        assert call(0) is not None
        kept = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
        kept.request("GET", "/healthz")
        kept.getresponse().read()

        with no_more_files(server):
            with ThreadPoolExecutor(CALLERS) as pool:
                turned_away = list(pool.map(lambda number: call(number, seconds=SECONDS), range(1, CALLERS + 1)))
            kept.request("POST", "/v1/messages", as_bytes(message("Kept.")), {**STANDARD_HEADERS, "x-api-key": token})
            answered = Answer(kept.getresponse())
            kept.close()

        assert turned_away.count(None) > CALLERS / 2
        assert answered.status in {200, *REFUSALS}
        wait_until(lambda: (again := call(100)) is not None and again.status == 200, what="an answer")
        settled()
        assert_explained(simulator)
