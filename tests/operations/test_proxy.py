"""The proxy that tests put before a server: it closes what has ended, and not before both sides have."""

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.proxy import Proxy, standing_before
from tests.servers import LOOPBACK
from tests.waiting import wait_until


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A server that says once what it was told, and hangs up when it is told no more."""
    with socket.create_server((LOOPBACK, 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    line, _ = listener.accept()
                except OSError:
                    return
                with line:
                    told = b""
                    while piece := line.recv(1000):
                        told += piece
                    line.sendall(told)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def proxy(server: socket.socket) -> Iterator[Proxy]:
    with standing_before(server.getsockname()[1]) as before:
        yield before


class TestTheProxy:
    def test_carries_an_answer_after_the_question_has_ended_and_closes_what_has_ended(self, proxy: Proxy) -> None:
        for _ in range(20):
            with socket.create_connection((LOOPBACK, proxy.port)) as client:
                client.sendall(b"Hi.")
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1000) == b"Hi."

        wait_until(lambda: proxy.open_sockets() == 1)
