"""
Waiting for runs: one poller for all who wait for the same kind of thing.

Everything is read from the database, so it does not matter which process executes the run.
"""

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError, close_old_connections, connections

from rensei.core.clock import database_now
from rensei.dispatch.models import Run

LOOK_SECONDS = 0.1

logger = structlog.get_logger(__name__)


class Poller:
    """
    Tells any number of waiters when what they wait for is there, by one query for all of them at a time.

    `look` takes the ids that somebody waits for, and names those that are there.
    """

    def __init__(self, look: Callable[[Collection[str]], Collection[str]]) -> None:
        self._look = look
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._poller: asyncio.Task[None] | None = None
        # The poller outlives the request that began it, so it has a thread, and a connection, of its own.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="poller")

    async def wait(self, awaited: str, *, seconds: float) -> bool:
        """Wait for one thing. False if the time passed first."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(awaited, set()).add(future)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            await asyncio.wait_for(future, seconds)
        except TimeoutError:
            return False
        finally:
            self._waiters.get(awaited, set()).discard(future)
            if not self._waiters.get(awaited):
                self._waiters.pop(awaited, None)
        return True

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiters:
                for found in await loop.run_in_executor(self._thread, self._try_to_look, list(self._waiters)):
                    for future in self._waiters.get(found, ()):
                        if not future.done():
                            future.set_result(None)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            # Whoever comes from here on needs a poller of its own.
            self._poller = None
            # The loop may end first, and cancel this: the thread's connection must not stay open. It is looked up
            # in the thread; `connection.close` would be that of this one.
            await loop.run_in_executor(self._thread, connections.close_all)

    def _try_to_look(self, awaited: Collection[str]) -> Collection[str]:
        try:
            return self._look(awaited)
        except DatabaseError as fault:
            # Those who wait may wait a little longer; the next look has a connection of its own.
            logger.warning("poller_database_down", fault=type(fault).__name__)
            connections.close_all()
            return ()


def ended_among(run_ids: Collection[str]) -> list[str]:
    """Name the runs that have ended."""
    close_old_connections()
    return list(Run.objects.filter(id__in=run_ids, state__in=Run.ENDED).values_list("id", flat=True))


def hosts_with_work(host_ids: Collection[str]) -> list[str]:
    """Name the machines that a run waits for."""
    close_old_connections()
    waiting = Run.objects.filter(host_id__in=host_ids, state=Run.State.QUEUED, deadline_at__gt=database_now())
    return list(waiting.values_list("host_id", flat=True).distinct())


async def give_back_connection() -> None:
    """
    Give this request's database connection back before it waits, so that those who wait hold none.

    A request's synchronous code runs in a thread of its own, whose connection is otherwise kept to its end.
    """
    await sync_to_async(close_old_connections)()
