"""A way to the server that a test can listen at, and close."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests import servers
from tests.cli.terminal import Terminal
from tests.journeys.stack import Stack


class Door:
    """An address that leads to the server, as long as it is open."""

    def __init__(self, server: Stack) -> None:
        self._server = (urlsplit(server.url).hostname, urlsplit(server.url).port)
        self._port = servers.free_port()
        self.url = f"http://{servers.LOOPBACK}:{self._port}"
        self.heard = bytearray()
        """Everything that came to the server through this door."""

    @contextmanager
    def open(self) -> Iterator[None]:
        inside: list[socket.socket] = []
        with socket.create_server((servers.LOOPBACK, self._port)) as listener:
            threading.Thread(target=self._let_in, args=(listener, inside), daemon=True).start()
            yield
            listener.shutdown(socket.SHUT_RDWR)
        for one in inside:
            one.close()

    def _let_in(self, listener: socket.socket, inside: list[socket.socket]) -> None:
        while True:
            try:
                guest, _ = listener.accept()
            except OSError:
                return
            host = socket.create_connection(self._server)
            inside += [guest, host]
            threading.Thread(target=self._carry, args=(guest, host, self.heard), daemon=True).start()
            threading.Thread(target=self._carry, args=(host, guest, bytearray()), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, heard: bytearray) -> None:
        try:
            while data := source.recv(65536):
                heard += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def move(machine: Terminal, url: str) -> None:
    """Have the machine reach the same server by another address."""
    document = machine.config()
    document["contexts"][0]["url"] = url
    machine.config_file.write_text(json.dumps(document))
    machine.variables["RENSEI_API_URL"] = url
