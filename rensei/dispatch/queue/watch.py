"""
When a worker looks into the queue: as soon as a run was queued, and otherwise seldom.

PostgreSQL tells of each run that is queued. On SQLite, one pragma says ten times a second whether anything was written,
and asks for no run. The runs themselves are looked for once a second in any case.
"""

import contextlib
import select
import socket
import time

from django.db import connection

from rensei.core.changes import Channel, data_version

LOOK_SECONDS = 0.1


class QueueWatch:
    """Belongs to the thread that claims, and to its connection. Only `wake` may be called from elsewhere."""

    def __init__(self) -> None:
        self._channel = Channel("runs_queued")
        self._data_version = -1
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def begin(self) -> None:
        """
        Begin to watch, before the queue is looked at: what is queued after this ends the next wait.

        :raises DatabaseError: if the database does not answer
        """
        connection.ensure_connection()
        if connection.vendor == "postgresql":
            self._channel.payloads()
        else:
            self._data_version = data_version()

    def wait(self, seconds: float) -> None:
        """
        Wait until a run may have been queued, `wake` was called, or the time is over.

        :raises DatabaseError: if the database does not answer
        """
        notices = self._channel.fileno()
        watched = [self._reader.fileno()] if notices is None else [self._reader.fileno(), notices]
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            # Only SQLite has to be asked.
            pause = min(LOOK_SECONDS, left) if notices is None else left
            ready, _, _ = select.select(watched, [], [], pause)
            if ready or (connection.vendor == "sqlite" and data_version() != self._data_version):
                break
        self._forget_wakes()

    def pause(self) -> None:
        """Watch no more until the next `begin`: PostgreSQL keeps every notice that a listener has not taken."""
        self._channel.close()

    def wake(self) -> None:
        """End the wait, from any thread or signal handler."""
        # A socket that is full of wakes has enough of them, and one that is closed needs none.
        with contextlib.suppress(OSError):
            self._writer.send(b"!")

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def _forget_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
