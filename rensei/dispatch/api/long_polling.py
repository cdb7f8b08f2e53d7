"""
Long polling for runs: one poller for all requests that wait for the same kind of event.

All state is read from the database, so it does not matter which process executes the run.
"""

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError, close_old_connections, connections
from django.http import HttpRequest

from rensei.core import request_places
from rensei.core.clock import database_now
from rensei.dispatch.models import Run

LOOK_SECONDS = 0.1

logger = structlog.get_logger(__name__)


class Poller:
    """
    Notifies any number of waiting requests, with one query for all of them at a time.

    `look` takes the awaited ids and returns those that are ready.
    """

    def __init__(self, look: Callable[[Collection[str]], Collection[str]]) -> None:
        self._look = look
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._poller: asyncio.Task[None] | None = None
        # The poller outlives the request that started it, so it uses a separate thread and connection.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="poller")

    async def wait(self, awaited: str, *, seconds: float) -> bool:
        """Wait for one id. Returns False if the time expires first."""
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
            # Requests that arrive from now on must start a new poller.
            self._poller = None
            # This also runs when the loop ends and cancels the task: the thread's connection must not stay open.
            # `connections` is resolved in that thread; a bound `connection.close` would be this thread's.
            await loop.run_in_executor(self._thread, connections.close_all)

    def _try_to_look(self, awaited: Collection[str]) -> Collection[str]:
        try:
            return self._look(awaited)
        except DatabaseError as fault:
            # The requests wait longer; the next poll opens a new connection.
            logger.warning("poller_database_down", fault=type(fault).__name__)
            connections.close_all()
            return ()


def ended_among(run_ids: Collection[str]) -> list[str]:
    """Return the runs that have ended."""
    close_old_connections()
    return list(Run.objects.filter(id__in=run_ids, state__in=Run.ENDED).values_list("id", flat=True))


def hosts_with_work(host_ids: Collection[str]) -> list[str]:
    """Return the machines that have a queued run."""
    close_old_connections()
    waiting = Run.objects.filter(host_id__in=host_ids, state=Run.State.QUEUED, deadline_at__gt=database_now())
    return list(waiting.values_list("host_id", flat=True).distinct())


async def begin_to_wait(request: HttpRequest) -> None:
    """
    Release this request's database connection, and its places among the requests under way, before a wait.

    A request's synchronous code runs in a separate thread, which otherwise holds its connection until the request ends.
    """
    await sync_to_async(close_old_connections)()
    request_places.leave_of_org(request)
    request_places.leave_address()
