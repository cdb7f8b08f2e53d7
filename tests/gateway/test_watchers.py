"""Those who watch a run and read slowly, or not at all: what they do not take waits in the database."""

import socket
import time
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from rensei.dispatch.models import Run, RunChunk
from tests.gateway.line import exchange, message, settled
from tests.gateway.server import Server

pytestmark = pytest.mark.django_db(transaction=True)

MEGABYTE = 1024 * 1024
WATCHERS = 20
# So long that few are many bytes: to store many takes longer than all else here.
EVENTS, CHARACTERS = 3_000, 8_000


@pytest.fixture
def long_run(ask: Any, byok: Any) -> Run:
    """A run whose events are twenty-four megabytes."""
    ask(message())
    settled()
    run: Run = Run.objects.get()
    text = "x" * CHARACTERS
    chunks = [RunChunk(run=run, seq=seq, kind=RunChunk.Kind.DELTA, data={"text": text}) for seq in range(1, EVENTS + 1)]
    RunChunk.objects.bulk_create(chunks, batch_size=1_000)
    Run.objects.update(chunk_count=EVENTS)
    return run


def watch(server: Server, run: Run, token: str) -> socket.socket:
    """Ask for the events of a run, and read no more than the first byte."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    address = urlsplit(server.url)
    line.settimeout(60)
    line.connect((address.hostname, address.port))
    head = (
        f"GET /api/v1/runs/{run.id}/events HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {token}\r\n\r\n"
    )
    line.sendall(head.encode())
    assert line.recv(1) == b"H"
    return line


def read_all(server: Server, run: Run, token: str) -> bytes:
    path, headers = f"/api/v1/runs/{run.id}/events", {"authorization": f"Bearer {token}"}
    return exchange(server, None, path=path, method="GET", headers=headers).body


@pytest.mark.timeout(300)
class TestManySlowWatchers:
    def test_do_not_fill_the_servers_memory(self, server: Server, token: str, long_run: Run) -> None:
        with ExitStack() as stack:
            everything = read_all(server, long_run, token)
            before = server.memory()

            for _ in range(WATCHERS):
                stack.enter_context(watch(server, long_run, token))
            most = before
            for _ in range(60):
                most = max(most, server.memory())
                time.sleep(0.05)
        assert len(everything) > EVENTS * CHARACTERS
        assert most - before < WATCHERS * EVENTS * CHARACTERS / 2, f"{(most - before) / MEGABYTE:.0f} MB more"
