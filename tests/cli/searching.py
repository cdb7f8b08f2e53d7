"""All places where a credential could be found after it has left the machine, as the bytes that they hold."""

import base64
import binascii
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from django.db import connection
from redis import Redis

from tests.journeys.stack import Stack
from tests.waiting import wait_until

# Celery wraps what a task is given, so that a search of the plain bytes would miss it.
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{24,}={0,2}")


class Listener:
    """Writes down every command that Redis gets, from anyone. https://redis.io/docs/latest/commands/monitor/"""

    def __init__(self, url: str) -> None:
        self._url = url
        self._heard = bytearray()

    @contextmanager
    def listen(self) -> Iterator[None]:
        address = urlsplit(self._url)
        with socket.create_connection((str(address.hostname), int(address.port or 0))) as line:
            line.sendall(b"MONITOR\r\n")
            assert line.recv(64).startswith(b"+OK")
            threading.Thread(target=self._write_down, args=(line,), daemon=True).start()
            yield
            line.shutdown(socket.SHUT_RDWR)

    def hear(self) -> bytes:
        """Everything that Redis got until now."""
        # Redis tells its listeners in the order of the commands, but whoever gave one has its answer before they hear
        # of it: what came before a command of our own has been heard when this one is.
        mark = secrets.token_hex(16)
        with Redis.from_url(self._url) as client:
            client.echo(mark)
        wait_until(lambda: mark.encode() in self._heard, what="hearing all commands")
        return with_unwrapped(bytes(self._heard))

    def _write_down(self, line: socket.socket) -> None:
        try:
            while data := line.recv(65536):
                self._heard += data
        except OSError:
            pass


def with_unwrapped(content: bytes) -> bytes:
    """Put behind the bytes what stands in them as base64."""
    unwrapped = [content]
    for found in _BASE64.findall(content):
        try:
            unwrapped.append(base64.b64decode(found, validate=True))
        except binascii.Error:
            continue
    return b"\n".join(unwrapped)


def everything_stored() -> bytes:
    """Every row of every table."""
    found: list[bytes] = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names():
            cursor.execute(f'SELECT * FROM "{table}"')
            found.append(repr(cursor.fetchall()).encode())
    return b"".join(found)


def everything_written(server: Stack) -> bytes:
    """Every file of the server: logs, and whatever else it keeps."""
    return b"".join(path.read_bytes() for path in Path(server.folder).rglob("*") if path.is_file())
