"""
Find the runs that have new events without a query for each run.

PostgreSQL sends NOTIFY from a trigger on the table of events. SQLite serializes its writers, so the new rows are those
after the last row read; one pragma shows whether anything was written at all. Neither has to be complete: the poller
checks all followed runs every second.
"""

from django.db import connection, connections

from rensei.core.changes import Channel, data_version
from rensei.dispatch.models import RunChunk

CHANNEL = "run_events"
ROWS_MAX = 1000


class Notices:
    """The notifications of new events. It is bound to one thread and holds that thread's connection."""

    def __init__(self) -> None:
        self._channel = Channel(CHANNEL)
        self._data_version = -1
        self._newest: int | None = None

    def told(self) -> set[str]:
        """Return the runs that have had new events since the last call."""
        connection.ensure_connection()
        return set(self._channel.payloads()) if connection.vendor == "postgresql" else self._inserted()

    def fileno(self) -> int | None:
        """Return the socket of PostgreSQL's notifications, for an event loop to wait on."""
        return self._channel.fileno()

    def close(self) -> None:
        """Release the connection and stop listening on it, because a pool may give it to another thread."""
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
