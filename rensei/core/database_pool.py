"""The connections of this process to PostgreSQL. SQLite has a connection for each thread, and no pool."""

from typing import Any

from django.db import connection

# A connection that was not used for longer may have died with the database, and is checked before it is used.
PAUSE_SECONDS = 1.0


def check_connection() -> None:
    """
    Close this thread's connection if the database has closed it, after a pause in which it may have been restarted.

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
