"""Threads for work that would block the event loop: the processing of large bodies, and queries."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

from django.db import close_old_connections

from rensei.core.limits import limit
from rensei.core.transactions import leave_database

# In the worst case, a body of this size takes a few milliseconds on the event loop.
LARGE_BYTES = 64 * 1024
THREADS = limit(
    2,
    "at once",
    what="Gateway bodies over 64 KiB that are read, each process, and one at a time of each organization",
    told="the caller: it waits for its turn",
)

Result = TypeVar("Result")


class BodyThreads:
    """Threads for large bodies. At most one body of each organization is processed at a time."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway-body")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self, work: Callable[[], Result], *, size: int, org_id: str) -> Result:
        """Process a body of this size: directly if it is small, in a thread and in turn if it is large."""
        if size <= LARGE_BYTES:
            return work()
        turn = self._turns.setdefault(org_id, asyncio.Lock())
        async with turn:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)

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
