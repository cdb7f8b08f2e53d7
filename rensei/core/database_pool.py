"""The connections of this process to PostgreSQL. SQLite has a connection for each thread, and no pool."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import Semaphore
from typing import Any
from weakref import WeakValueDictionary

from django.conf import settings
from django.db import OperationalError, connection

from rensei.core.errors import DATABASE_FAULTS
from rensei.core.limits import limit

# A connection that was not used for longer may have died with the database, and is checked before it is used.
PAUSE_SECONDS = 1.0
# A serving process keeps nine: four that load callers and routes, one that looks for changes, two that write, one that
# renews leases, and that of the poller of event streams. The rest are for requests.
KEPT = 9
POOL_MIN = 12
OF_ORG_MIN = limit(
    2,
    "connections, or half of those that requests can get where that is more",
    what="Connections to PostgreSQL that requests of one organization to REST and pages hold, each process",
    told="the caller: it waits for one, then 503 `DATABASE_UNAVAILABLE`, retryable",
)
WAIT_SECONDS = 30.0

ConnectionPlace = Semaphore

_places: WeakValueDictionary[str, ConnectionPlace] = WeakValueDictionary()
_lock = threading.Lock()
_place: ContextVar[ConnectionPlace | None] = ContextVar("connection_place", default=None)
_patience: ContextVar[float | None] = ContextVar("connection_patience", default=None)


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


def count_for_org(org_id: str) -> None:
    """Count the connections of this request in the share of its organization, until `count_for_none`."""
    pool = settings.DATABASES["default"].get("OPTIONS", {}).get("pool")
    if not pool:
        return
    with _lock:
        place = _places.setdefault(org_id, Semaphore(max(OF_ORG_MIN, (pool["max_size"] - KEPT) // 2)))
    _place.set(place)
    count_open: Any = getattr(connection, "count_for", None)
    if count_open is not None:
        count_open(place)


def count_for_none() -> None:
    """Count no further connections. An open one is counted until it is closed."""
    _place.set(None)


def take_place() -> ConnectionPlace | None:
    """
    Wait for a place of the organization whose request this is. None where there is none.

    :raises OperationalError: if none becomes free in time
    """
    place = _place.get()
    if place is not None and not place.acquire(timeout=WAIT_SECONDS):
        raise OperationalError("The requests of this organization use as many connections as they may.")
    return place


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Wait for a connection no longer than this within the block. A database fault is raised then."""
    reset = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(reset)


def with_patience(pool: Any) -> Any:
    """Return a pool as it is, or one that waits no longer than this context's patience."""
    seconds = _patience.get()
    return pool if seconds is None else _Impatient(pool, seconds)


class _Impatient:
    """A pool that gives a connection within some time."""

    def __init__(self, pool: Any, seconds: float) -> None:
        self._pool, self._seconds = pool, seconds

    def getconn(self) -> Any:
        return self._pool.getconn(timeout=self._seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)
