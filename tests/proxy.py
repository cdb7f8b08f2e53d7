"""A TCP proxy that stands between a program and its server, and makes the server slow."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from tests.servers import LOOPBACK


class Proxy:
    """
    Carries bytes both ways. What the server says is held back for `delay` seconds, which may change at any time, and
    passes through `rewrite`.
    """

    def __init__(self, *, server_port: int) -> None:
        self.delay = 0.0
        self.rewrite: Callable[[bytes], bytes] = bytes
        self.held = threading.Event()
        self._server_port = server_port
        self._listener = socket.create_server((LOOPBACK, 0))
        self._sockets: set[socket.socket] = {self._listener}
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def close(self) -> None:
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def open_sockets(self) -> int:
        """Count the sockets of both sides, and the listener."""
        return len(self._sockets)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection((LOOPBACK, self._server_port))
                except OSError:
                    client.close()
                    continue
                self._sockets |= {client, server}
                threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        """Carry both ways until both have ended, and close."""
        with client, server:
            asking = threading.Thread(target=self._carry, args=(client, server, False), daemon=True)
            asking.start()
            self._carry(server, client, True)
            asking.join()
        self._sockets -= {client, server}

    def _carry(self, source: socket.socket, target: socket.socket, from_server: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if from_server and self.delay:
                    self.held.set()
                    time.sleep(self.delay)
                target.sendall(self.rewrite(piece) if from_server else piece)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def standing_before(server_port: int) -> Iterator[Proxy]:
    """Stand before a server of this machine."""
    proxy = Proxy(server_port=server_port)
    try:
        yield proxy
    finally:
        proxy.close()
