"""What would hold up the calls of others is done in threads: the work that a large body makes, and queries."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

from django.db import close_old_connections

from rensei.core.limits import limit
from rensei.core.transactions import leave_database

# What a body of this size takes on the event loop, at its worst, is some milliseconds.
LARGE_BYTES = 64 * 1024
THREADS = limit(
    2,
    "at once",
    what="Gateway bodies over 64 KiB that are read, each process, and one at a time of each organization",
    told="the caller: it waits for its turn",
)

Result = TypeVar("Result")


class BodyThreads:
    """Threads for large bodies. Each organization has one of its own worked on at a time, and then its turn again."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway-body")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self, work: Callable[[], Result], *, size: int, org_id: str) -> Result:
        """Do what has to be done with a body of this size: at once if it is small, and in its turn if it is large."""
        if size <= LARGE_BYTES:
            return work()
        turn = self._turns.setdefault(org_id, asyncio.Lock())
        async with turn:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        self._executor.shutdown()


async def in_thread(work: Callable[[], Result]) -> Result:
    """Do in a thread what asks the database, and give its connection back: the thread may rest for long after it."""

    def do() -> Result:
        close_old_connections()
        try:
            return work()
        finally:
            leave_database()

    return await asyncio.get_running_loop().run_in_executor(None, do)
