"""
Signals that another process has written to the database, which cost less than querying for what it wrote.

PostgreSQL sends a transaction's notifications by NOTIFY. SQLite has a number that changes with each commit of another
connection. Neither is relied on, since a pooler may drop a notification: readers also check from time to time.
"""

from typing import Any

import psycopg
from django.db import connection


def data_version() -> int:
    """Read SQLite's number of commits by other connections. https://www.sqlite.org/pragma.html#pragma_data_version"""
    connection.ensure_connection()
    # Not through Django's cursor, which takes several times as long: an idle worker reads this ten times a second.
    with connection.wrap_database_errors:
        (version,) = connection.connection.execute("PRAGMA data_version").fetchone()
    return int(version)


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

    def fileno(self) -> int | None:
        """Return the socket on which notifications arrive. None while not listening."""
        return None if self._listening is None or self._listening.closed else self._listening.fileno()

    def close(self) -> None:
        """Stop listening, because a pool may give the connection to another thread."""
        if self._listening is not None and not self._listening.closed:
            with connection.wrap_database_errors:
                self._listening.execute(f"UNLISTEN {self._name}")
        self._listening = None
