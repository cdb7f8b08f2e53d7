"""
Decide when a worker polls the queue: as soon as a run is queued, and rarely otherwise.

PostgreSQL notifies of each queued run. With SQLite, the process that has queued a run writes to a named pipe. In any
case the worker polls the queue every few seconds.
"""

import contextlib
import select
import socket

from django.db import connection

from rensei.core.changes import Channel, Pipe

NAME = "runs_queued"


def notify() -> None:
    """Wake a worker that watches. PostgreSQL does so itself, by a trigger on the queued runs."""
    if connection.vendor == "sqlite":
        Pipe(NAME).send()


class QueueWatch:
    """The watch of the thread that claims, bound to its connection. Other threads may call `wake` only."""

    def __init__(self) -> None:
        self._signal: Channel | Pipe = Channel(NAME) if connection.vendor == "postgresql" else Pipe(NAME)
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def begin(self) -> None:
        """
        Begin to watch, before the queue is polled: a run that is queued after this ends the next wait.

        :raises DatabaseError: if the database does not respond
        """
        self._signal.forget()

    def wait(self, seconds: float) -> bool:
        """Wait until a notification comes, `wake` is called, or the time has expired. True if a notification came."""
        signal = self._signal.fileno()
        watched = [self._reader.fileno(), *([] if signal is None else [signal])]
        ready, _, _ = select.select(watched, [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        return signal in ready

    def pause(self) -> None:
        """Stop watching until the next `begin`: PostgreSQL stores every notification that a listener has not read."""
        self._signal.close()

    def wake(self) -> None:
        """End the wait, from any thread or signal handler."""
        # If the socket is full, enough wake-ups are pending. If it is closed, none is needed.
        with contextlib.suppress(OSError):
            self._writer.send(b"!")

    def close(self) -> None:
        self._signal.close()
        self._reader.close()
        self._writer.close()
