"""
Signals that another process has written to the database, which cost less than querying for what it wrote.

PostgreSQL sends a transaction's notifications by NOTIFY. SQLite has a number that changes with each commit of another
connection; a named pipe beside its file wakes a process that waits, without polling. None of them is relied on, since a
notification may be lost: readers also check from time to time.
"""

import contextlib
import os
import stat
from typing import Any

import psycopg
from django.db import connection


def data_version() -> int:
    """Read SQLite's number of commits by other connections. https://www.sqlite.org/pragma.html#pragma_data_version"""
    connection.ensure_connection()
    # Not through Django's cursor, which takes several times as long: event streams read this ten times a second.
    with connection.wrap_database_errors:
        (version,) = connection.connection.execute("PRAGMA data_version").fetchone()
    return int(version)


class Pipe:
    """
    A named pipe beside SQLite's file: any process may write to it without waiting, and one that reads it is woken.

    If several processes wait, at least one of them is woken. Without a file, as in memory, there is no pipe.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._reader: int | None = None

    def send(self) -> None:
        """Wake a reader. If there is none, or wake-ups fill the pipe, nothing more is needed."""
        writer = self._open(os.O_WRONLY)
        if writer is not None:
            with contextlib.suppress(OSError):
                os.write(writer, b"!")
            os.close(writer)

    def forget(self) -> None:
        """Take all wake-ups so far. The first call creates the pipe and opens it."""
        if self._reader is None:
            with contextlib.suppress(OSError):
                os.mkfifo(self._path, mode=0o600)
            # Opened for writing too, so that the pipe does not end when a writer closes it.
            self._reader = self._open(os.O_RDWR)
        if self._reader is not None:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._reader, 4096):
                    pass

    def fileno(self) -> int | None:
        """Return the pipe to wait on. None if it is not open."""
        return self._reader

    def close(self) -> None:
        if self._reader is not None:
            os.close(self._reader)
            self._reader = None

    @property
    def _path(self) -> str:
        return f"{connection.settings_dict['NAME']}-{self._name}"

    def _open(self, flags: int) -> int | None:
        """Open the pipe. None if it does not exist or is no pipe, and for a writer if it has no reader."""
        try:
            opened = os.open(self._path, flags | os.O_NONBLOCK)
        except OSError:
            return None
        if stat.S_ISFIFO(os.fstat(opened).st_mode):
            return opened
        os.close(opened)
        return None


class Channel:
    """A channel of PostgreSQL's notifications. It belongs to one thread, and to the connection of that thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._listening: psycopg.Connection[Any] | None = None

    def payloads(self) -> list[str]:
        """
        Return the payloads since the last call. The first call on a connection starts to listen.

        :raises DatabaseError: if the connection is lost
        """
        connection.ensure_connection()
        current = connection.connection
        with connection.wrap_database_errors:
            if self._listening is not current:
                current.execute(f"LISTEN {self._name}")
                self._listening = current
            return [notice.payload for notice in current.notifies(timeout=0)]

    def forget(self) -> None:
        """
        Take all notifications so far.

        :raises DatabaseError: if the connection is lost
        """
        self.payloads()

    def fileno(self) -> int | None:
        """Return the socket on which notifications arrive. None while not listening."""
        return None if self._listening is None or self._listening.closed else self._listening.fileno()

    def close(self) -> None:
        """Stop listening, because a pool may give the connection to another thread."""
        if self._listening is not None and not self._listening.closed:
            with connection.wrap_database_errors:
                self._listening.execute(f"UNLISTEN {self._name}")
        self._listening = None
