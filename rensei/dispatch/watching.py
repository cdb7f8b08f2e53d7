"""
Waiting for runs, live: one poller for all who wait for the same kind of thing, and the stream of a run's events.

Everything is read from the database, so it does not matter which process executes the run.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError, close_old_connections, connections

from rensei.core.clock import database_now
from rensei.core.usage import Usage
from rensei.dispatch import presenters
from rensei.dispatch.models import Run, RunChunk

LOOK_SECONDS = 0.1
COMMENT_SECONDS = 15.0
BATCH = 500

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


async def events(run_id: str, *, after: int) -> AsyncIterator[bytes]:
    """
    Stream a run's events from a sequence number on, until it has ended.

    `state` and `done` carry the run, `delta` a piece of text, `usage` the counts. A comment every 15 s
    keeps the line open.
    """
    seen, spoken = after, time.monotonic()
    if after == 0:
        run = await _run(run_id)
        yield _event(0, "state", presenters.run_body(run))
    while True:
        chunks = await _chunks(run_id, seen)
        for chunk in chunks:
            seen, spoken = chunk.seq, time.monotonic()
            yield _event(chunk.seq, chunk.kind, await _data(chunk))
            if chunk.kind == RunChunk.Kind.DONE:
                return
        if len(chunks) == BATCH:
            continue
        if not chunks and await _is_over(run_id, seen):
            if seen == 0:
                # A run of the gateway keeps no events: its end is all that there is to tell.
                yield _event(1, "done", presenters.run_body(await _run(run_id)))
            return
        if time.monotonic() - spoken >= COMMENT_SECONDS:
            spoken = time.monotonic()
            yield b": still here\n\n"
        await give_back_connection()
        await asyncio.sleep(LOOK_SECONDS)


def _event(seq: int, kind: str, data: Any) -> bytes:
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


async def _data(chunk: RunChunk) -> Any:
    if chunk.kind in {RunChunk.Kind.STATE, RunChunk.Kind.DONE}:
        return presenters.run_body(await _run(chunk.run_id))
    if chunk.kind == RunChunk.Kind.USAGE:
        return presenters.usage_body(Usage.from_dict(chunk.data) if chunk.data else Usage())
    return chunk.data


async def give_back_connection() -> None:
    """
    Give this request's database connection back before it waits, so that those who wait hold none.

    A request's synchronous code runs in a thread of its own, whose connection is otherwise kept to its end.
    """
    await sync_to_async(close_old_connections)()


@sync_to_async
def _run(run_id: str) -> Run:
    run: Run = Run.objects.select_related("project").get(id=run_id)
    return run


@sync_to_async
def _chunks(run_id: str, after: int) -> list[RunChunk]:
    return list(RunChunk.objects.filter(run_id=run_id, seq__gt=after).order_by("seq")[:BATCH])


@sync_to_async
def _is_over(run_id: str, seen: int) -> bool:
    """Whether a resumed stream has nothing to come: its last event was seen before."""
    return Run.objects.filter(id=run_id, state__in=Run.ENDED, chunk_count__lte=seen).exists()
