"""The connections of this process to PostgreSQL. SQLite has a connection for each thread, and no pool."""

from typing import Any

from django.db import connection


def waiting_for_connections() -> int:
    """Count the threads that wait for a connection, without using one."""
    pool: Any = getattr(connection, "pool", None)
    if pool is None:
        return 0
    stats = pool.get_stats()
    return int(stats.get("requests_waiting", 0)) if stats["pool_size"] >= stats["pool_max"] else 0
