"""
Signs that another process has written to the database, which cost less than asking for what it wrote.

PostgreSQL passes on what a transaction tells by NOTIFY. SQLite has a number that changes with each commit of another
connection. Neither is relied on: a pooler may pass no notice on, so their readers also look from time to time.
"""

from typing import Any

import psycopg
from django.db import connection


def data_version() -> int:
    """Read SQLite's number of commits by other connections. https://www.sqlite.org/pragma.html#pragma_data_version"""
    connection.ensure_connection()
    # Not by Django's cursor, which takes several times as long: an idle worker asks ten times a second.
    with connection.wrap_database_errors:
        (version,) = connection.connection.execute("PRAGMA data_version").fetchone()
    return int(version)


class Channel:
    """A channel of PostgreSQL's notices. It belongs to one thread, and to the connection of that thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._listening: psycopg.Connection[Any] | None = None

    def payloads(self) -> list[str]:
        """
        Give what was told since the last call. The first call on a connection begins to listen.

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
        """Name the socket on which notices come. None while nothing listens."""
        return None if self._listening is None or self._listening.closed else self._listening.fileno()

    def close(self) -> None:
        """Listen no more: a pool may hand the connection to another thread."""
        if self._listening is not None and not self._listening.closed:
            with connection.wrap_database_errors:
                self._listening.execute(f"UNLISTEN {self._name}")
        self._listening = None
