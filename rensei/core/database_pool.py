"""The connections of this process to PostgreSQL. SQLite has a connection for each thread, and no pool."""

from contextlib import suppress
from typing import Any

from django.db import connection

from rensei.core.errors import DATABASE_FAULTS

# A connection that was not used for longer may have died with the database, and is checked before it is used.
PAUSE_SECONDS = 1.0
# A serving process keeps nine: four that load callers and routes, one that looks for changes, two that write, one that
# renews leases, and that of the poller of event streams. The rest are for requests.
POOL_MIN = 12


def open_connection() -> None:
    """
    Open this thread's connection before its first use, when requests may hold all of the pool.

    If the database is unavailable, the first use opens it.
    """
    with suppress(*DATABASE_FAULTS):
        connection.ensure_connection()


def check_connection() -> None:
    """
    Close this thread's connection if the database has closed it, after a fault, or a pause with a possible restart.

    A connection that works is kept. Returned to the pool, it would be given to the requests that wait for one, and this
    thread would wait behind them.
    """
    if connection.connection is not None and not connection.is_usable():
        connection.close()


def waiting_for_connections() -> int:
    """Count the threads that wait for a connection, without using one."""
    pool: Any = getattr(connection, "pool", None)
    if pool is None:
        return 0
    stats = pool.get_stats()
    return int(stats.get("requests_waiting", 0)) if stats["pool_size"] >= stats["pool_max"] else 0
