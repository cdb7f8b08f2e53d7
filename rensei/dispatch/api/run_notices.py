"""
Which runs have new events, learned without asking for each of them.

PostgreSQL tells by NOTIFY, from a trigger on the table of events. On SQLite, whose writers come one after the other,
the rows after the last one that was seen are the new ones; while nothing was written, one pragma says so. Neither has
to be complete: who follows runs looks at all of them every second.
"""

from django.db import connection, connections

from rensei.core.changes import Channel, data_version
from rensei.dispatch.models import RunChunk

CHANNEL = "run_events"
ROWS_MAX = 1000


class Notices:
    """Belongs to one thread, and to the connection of that thread, which it keeps."""

    def __init__(self) -> None:
        self._channel = Channel(CHANNEL)
        self._data_version = -1
        self._newest: int | None = None

    def told(self) -> set[str]:
        """Name the runs that have had new events since the last call."""
        connection.ensure_connection()
        return set(self._channel.payloads()) if connection.vendor == "postgresql" else self._inserted()

    def fileno(self) -> int | None:
        """Name the socket on which PostgreSQL tells, for an event loop to wait for."""
        return self._channel.fileno()

    def close(self) -> None:
        """Give the connection back. A pool may hand it to another thread, so it listens no more."""
        self._channel.close()
        self._data_version, self._newest = -1, None
        connections.close_all()

    def _inserted(self) -> set[str]:
        version = data_version()
        if version == self._data_version:
            return set()
        if self._newest is None:
            self._newest = RunChunk.objects.order_by("-id").values_list("id", flat=True).first() or 0
        new = RunChunk.objects.filter(id__gt=self._newest).order_by("id").values_list("id", "run_id")
        rows = list(new[:ROWS_MAX])
        if rows:
            self._newest = rows[-1][0]
        if len(rows) < ROWS_MAX:
            self._data_version = version
        return {run_id for _, run_id in rows}
