"""Event streams at a real server: idle ones take no threads and slow no other caller, unread ones little memory."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rensei.core.clock import database_now
from rensei.dispatch.models import Run, RunChunk
from rensei.orgs.access import for_member
from rensei.orgs.models import User
from rensei.tokens.services import create_token
from tests.attacks import IS_WHOLE, sized
from tests.gateway import server as servers
from tests.gateway.server import Server

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.attack]

FEW, MANY = 5, sized(100, 1000)
CALLS = sized(50, 2000)


@pytest.fixture
def server(transactional_db: None, tmp_path: Path) -> Iterator[Server]:
    options = {"RENSEI_STREAMS_PER_TOKEN": "1000", "RENSEI_STREAMS_PER_ORG": "1000", "RENSEI_RATE_API": "1000000/min"}
    with servers.start(folder=tmp_path, upstream="http://127.0.0.1:9", RENSEI_RATE_ORG="1000000/min", **options) as one:
        yield one


@pytest.fixture
def run(acme: Any) -> Run:
    """A run that goes on, and tells nothing by itself."""
    now = database_now()
    made: Run = Run.objects.create(
        org=acme, provider="claude", model_id="m", served_model_id="m", auth_mode="byok", payer="organization",
        max_tokens=1, created_at=now, deadline_at=now + timedelta(hours=1), state=Run.State.RUNNING,
        lease_until=now + timedelta(hours=1),
    )  # fmt: skip
    return made


@pytest.fixture
def follow(server: Server, run: Run, ada: User, access_of: Any) -> Iterator[Callable[[int], list[socket.socket]]]:
    """Open streams, and wait until each has told how its run stands."""
    _, secret = create_token(access_of(ada), name="streams")
    address = urlsplit(server.url)
    asked = f"GET /api/v1/runs/{run.id}/events HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer "
    with contextlib.ExitStack() as stack:

        def open_streams(count: int) -> list[socket.socket]:
            lines = []
            for _ in range(count):
                line = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=60))
                lines.append(line)
                line.sendall(f"{asked}{secret.reveal()}\r\n\r\n".encode())
                told = b""
                while b"event: state" not in told:
                    piece = line.recv(4096)
                    assert piece, told
                    told += piece
            return lines

        yield open_streams


def call_often(server: Server, token: str, *, calls: int) -> list[float]:
    """Make calls as another caller, four at a time, and list how long each took."""
    taken: list[float] = []

    def call() -> None:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
        for _ in range(calls // 4):
            began = time.monotonic()
            connection.request("GET", "/api/v1/me", headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
            taken.append(time.monotonic() - began)
        connection.close()

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == calls // 4 * 4
    return sorted(taken)


def threads_of(server: Server) -> int:
    return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in server.workers())


class TestIdleStreams:
    def test_hold_no_threads_and_slow_no_other_caller(self, server: Server, follow: Any, eve: User) -> None:
        access = for_member(user=eve, slug="evil")
        assert access is not None
        _, secret = create_token(access, name="other")
        other = secret.reveal()
        call_often(server, other, calls=sized(20, 200))
        alone = call_often(server, other, calls=CALLS)
        follow(FEW)
        before, memory = threads_of(server), server.memory()

        follow(MANY - FEW)

        # Requests that are being answered have a thread each, for a moment.
        assert threads_of(server) - before < 10
        figures = {"streams": MANY, "bytes each": (server.memory() - memory) // (MANY - FEW)}
        beside = call_often(server, other, calls=CALLS)
        place = len(alone) * 99 // 100
        figures |= {"p99 alone": alone[place], "p99 beside": beside[place]}
        print(figures)
        if IS_WHOLE:
            assert beside[place] <= 2 * alone[place], figures


class TestReadersThatTakeNothing:
    def test_hold_no_more_than_a_batch_each(self, server: Server, run: Run, follow: Any) -> None:
        """A reader that takes everything shows when the others have had their turn."""
        text, count, readers = "x" * 20_000, sized(1000, 4000), 5
        RunChunk.objects.bulk_create(
            RunChunk(run=run, seq=number, kind="delta", data={"text": text}) for number in range(1, count + 1)
        )
        before = server.memory()
        Run.objects.filter(pk=run.pk).update(chunk_count=count)

        *_, reading = follow(readers + 1)
        taken = 0
        while taken < len(text) * count:
            taken += len(reading.recv(1_000_000))

        assert server.memory() - before < readers * len(text) * count / 2
