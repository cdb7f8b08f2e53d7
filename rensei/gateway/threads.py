"""Threads for work that would block the event loop: the processing of large bodies and answers, and queries."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

from django.db import close_old_connections

from rensei.core.database_pool import PAUSE_SECONDS, check_connection, open_connection
from rensei.core.errors import DATABASE_FAULTS
from rensei.core.json_body import LARGE_WORK
from rensei.core.limits import limit
from rensei.core.transactions import leave_database

THREADS = limit(
    2,
    "at once",
    what="Gateway bodies and answers over 64 KiB, or about 1,000 values or events, that are read, each process, and "
    "one at a time of each organization",
    told="the caller: it waits for its turn",
)

Result = TypeVar("Result")
Given = ParamSpec("Given")
_used = threading.local()


class LoadThreads(ThreadPoolExecutor):
    """
    Threads that load callers and routes, each with a connection that it keeps.

    They must not wait for a connection of the pool: the requests of one organization, such as tests of keys that end
    together, may use all of them, and the calls of all organizations wait for these threads.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="gateway-load")
        self._number = threads

    def open_connections(self) -> None:
        """Start all threads and open their connections, when requests do not use the pool yet."""
        # A thread starts when it is needed, and would connect then. The barrier starts all of them now.
        all_started = threading.Barrier(self._number)
        for _ in range(self._number):
            super().submit(_open_together, all_started)

    def submit(self, work: Callable[Given, Result], /, *args: Given.args, **kwargs: Given.kwargs) -> Future[Result]:
        return super().submit(_with_kept_connection, partial(work, *args, **kwargs))


def _open_together(all_started: threading.Barrier) -> None:
    all_started.wait()
    open_connection()


def _with_kept_connection(work: Callable[[], Result]) -> Result:
    if time.monotonic() - getattr(_used, "at", 0.0) > PAUSE_SECONDS:
        check_connection()
    try:
        return work()
    except DATABASE_FAULTS:
        check_connection()
        raise
    finally:
        _used.at = time.monotonic()


class Turns:
    """One piece of work of each organization at a time."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, org_id: str) -> asyncio.Lock:
        """Return the lock of an organization. It exists while it is held or waited for."""
        return self._locks.setdefault(org_id, asyncio.Lock())


class BodyThreads:
    """Threads for large bodies and answers. At most one of each organization is processed at a time."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway-body")
        self._turns = Turns()

    async def run(self, work: Callable[[], Result], *, size: int, org_id: str) -> Result:
        """Process what takes this much work: directly if it is little, in a thread and in turn if it is much."""
        if size <= LARGE_WORK:
            return work()
        async with self._turns.of(org_id):
            done = asyncio.get_running_loop().run_in_executor(self._executor, work)
            try:
                return await asyncio.shield(done)
            except asyncio.CancelledError:
                # The thread goes on, so the turn ends with it. What it works on must not be used meanwhile.
                await asyncio.wait([done])
                # An error that is not retrieved would be logged.
                done.cancelled() or done.exception()
                raise

    def close(self) -> None:
        self._executor.shutdown()


async def in_thread(work: Callable[[], Result]) -> Result:
    """Run database work in a thread, and release its connection: the thread may be idle for a long time afterwards."""

    def do() -> Result:
        close_old_connections()
        try:
            return work()
        finally:
            leave_database()

    return await asyncio.get_running_loop().run_in_executor(None, do)
