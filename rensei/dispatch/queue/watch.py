"""
Decide when a worker polls the queue: as soon as a run is queued, and rarely otherwise.

PostgreSQL notifies of each queued run. On SQLite, one pragma shows ten times a second whether anything was written,
without a query for runs. In any case the queue is polled once a second.
"""

import contextlib
import select
import socket
import time

from django.db import connection

from rensei.core.changes import Channel, data_version

LOOK_SECONDS = 0.1


class QueueWatch:
    """The watch of the thread that claims, bound to its connection. Other threads may call `wake` only."""

    def __init__(self) -> None:
        self._channel = Channel("runs_queued")
        self._data_version = -1
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def begin(self) -> None:
        """
        Begin to watch, before the queue is polled: a run that is queued after this ends the next wait.

        :raises DatabaseError: if the database does not respond
        """
        connection.ensure_connection()
        if connection.vendor == "postgresql":
            self._channel.payloads()
        else:
            self._data_version = data_version()

    def wait(self, seconds: float) -> None:
        """
        Wait until a run may have been queued, `wake` was called, or the time has expired.

        :raises DatabaseError: if the database does not respond
        """
        notices = self._channel.fileno()
        watched = [self._reader.fileno()] if notices is None else [self._reader.fileno(), notices]
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            # Only SQLite has to be polled.
            pause = min(LOOK_SECONDS, left) if notices is None else left
            ready, _, _ = select.select(watched, [], [], pause)
            if ready or (connection.vendor == "sqlite" and data_version() != self._data_version):
                break
        self._forget_wakes()

    def pause(self) -> None:
        """Stop watching until the next `begin`: PostgreSQL stores every notification that a listener has not read."""
        self._channel.close()

    def wake(self) -> None:
        """End the wait, from any thread or signal handler."""
        # If the socket is full, enough wake-ups are pending. If it is closed, none is needed.
        with contextlib.suppress(OSError):
            self._writer.send(b"!")

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def _forget_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
