"""
Event streams of runs: one poller for all streams of a process, and the reads of each stream.

The poller makes a fixed number of queries for any number of streams: which followed runs have new events, and which
callers may still read them. A stream holds no thread and no database connection while it waits.
"""

import asyncio
import json
import time
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import structlog
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections
from django.db.models import TextField
from django.db.models.functions import Cast, Length

from rensei.core.errors import NotFound, RenseiError
from rensei.core.limits import limit
from rensei.core.problems import NotAuthenticated
from rensei.core.request_threads import leave_thread
from rensei.core.usage import Usage
from rensei.dispatch.api.open_streams import stream_places
from rensei.dispatch.api.run_notices import Notices
from rensei.dispatch.models import Run, RunChunk
from rensei.dispatch.queries import run_to_show
from rensei.dispatch.wire import RunAnswer, RunUsageAnswer
from rensei.tokens.still_open import Caller, still_open

LOOK_SECONDS = limit(
    0.1,
    "seconds apart; on PostgreSQL only when a change is notified, and once a second",
    what="Event streams: looks for what is new, each process, for all of its streams together",
    told="the caller: its events come after the next look",
)
# How often all runs and all callers are checked, independent of notifications.
WHOLE_LOOK_SECONDS = 1.0
COMMENT_SECONDS = 15.0
COMMENT = b": still here\n\n"
EVENTS_AT_ONCE = limit(
    500, "events", what="Event stream: events that are read at once", told="the caller: further ones follow"
)
CHARACTERS_AT_ONCE = limit(
    64_000,
    "characters",
    what="Event stream: events that are read at once and held for a reader until it has taken them",
    told="the caller: further events follow when it has taken these; one longer event comes alone",
)
READERS = limit(
    2,
    "threads",
    what="Event streams: database connections with which all of a process read events, besides that of their poller",
    told="the caller: its events come when others have been read",
)

Value = TypeVar("Value")
logger = structlog.get_logger(__name__)


class RunProgress(NamedTuple):
    """The progress of a run: the number of its last event, and whether it has ended."""

    last: int
    ended: bool


@dataclass(eq=False)
class _Follower:
    """The poller's record of one stream. `refusal` is the reason why it may receive no further events."""

    run_id: str
    caller: Caller
    seen: int
    progress: RunProgress | None = None
    refusal: RenseiError | None = None
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_due(self) -> bool:
        progress = self.progress
        return self.refusal is not None or (progress is not None and (progress.ended or progress.last > self.seen))


class _Found(NamedTuple):
    """The result of one poll: `progress_of` of the checked runs, and the callers to refuse."""

    asked: Collection[str]
    progress_of: Mapping[str, RunProgress]
    refused: Collection[Caller]


class Poller:
    """Polls for all streams of this process. It is bound to an event loop while there is a stream."""

    def __init__(self) -> None:
        # By run and caller. One caller may have hundreds of streams, so a poll counts callers, not streams.
        self._followers: dict[str, dict[Caller, set[_Follower]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._notices = Notices()
        # Both outlive the requests that they serve, so they use separate threads and connections.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="streams-poller")
        self._readers = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="streams-reader")
        # A new stream is checked immediately: `_woken` ends the wait before the next poll.
        self._is_new = True
        self._woken = asyncio.Event()

    def join(self, follower: _Follower) -> None:
        self._followers.setdefault(follower.run_id, {}).setdefault(follower.caller, set()).add(follower)
        self._is_new = True
        if self._task is None or self._task.done():
            self._woken = asyncio.Event()
            self._task = asyncio.create_task(self._poll())
        self._woken.set()

    def leave(self, follower: _Follower) -> None:
        of_run = self._followers.get(follower.run_id, {})
        followers = of_run.get(follower.caller, set())
        followers.discard(follower)
        if not followers:
            of_run.pop(follower.caller, None)
        if not of_run:
            self._followers.pop(follower.run_id, None)

    async def read(self, work: Callable[..., Value], *args: object) -> Value:
        """Read from the database in one of a few threads, and release the connection afterwards."""

        def read() -> Value:
            try:
                return work(*args)
            finally:
                connections.close_all()

        return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        whole_at = 0.0
        try:
            while self._followers:
                is_whole = self._is_new or time.monotonic() >= whole_at
                if is_whole:
                    self._is_new, whole_at = False, time.monotonic() + WHOLE_LOOK_SECONDS
                callers = {run_id: tuple(of_run) for run_id, of_run in self._followers.items()}
                self._woken.clear()
                self._tell(await loop.run_in_executor(self._thread, self._try_to_look, callers, is_whole))
                await asyncio.sleep(LOOK_SECONDS)
                await self._wait_for_notice(max(0.0, whole_at - time.monotonic()))
        finally:
            self._task = None
            # This also runs when the loop ends and cancels the task: the thread's connection must not stay open.
            await loop.run_in_executor(self._thread, self._try_to_close)

    async def _wait_for_notice(self, seconds: float) -> None:
        """Wait for a notification of PostgreSQL. On SQLite there is none, so the next poll checks for changes."""
        socket, loop = self._notices.fileno(), asyncio.get_running_loop()
        if socket is None:
            return
        loop.add_reader(socket, self._woken.set)
        try:
            await asyncio.wait_for(self._woken.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(socket)

    def _tell(self, found: _Found) -> None:
        for run_id in found.asked:
            progress = found.progress_of.get(run_id)
            for caller, followers in self._followers.get(run_id, {}).items():
                refusal: RenseiError | None = NotFound() if progress is None else None
                if found.refused and caller in found.refused:
                    refusal = NotAuthenticated()
                for follower in followers:
                    follower.progress = progress
                    follower.refusal = refusal or follower.refusal
                    if follower.is_due:
                        follower.woken.set()

    def _try_to_look(self, callers: Mapping[str, Collection[Caller]], is_whole: bool) -> _Found:
        try:
            told = self._notices.told()
            asked = callers.keys() if is_whole else callers.keys() & told
            if not asked:
                return _Found((), {}, ())
            rows = Run.objects.filter(id__in=asked).values_list("id", "chunk_count", "state")
            progress_of = {run_id: RunProgress(last, state in Run.ENDED) for run_id, last, state in rows}
            those = {caller for run_id in asked for caller in callers[run_id]}
            return _Found(asked, progress_of, those - still_open(those))
        except DatabaseError as fault:
            # The streams wait longer; the next poll opens a new connection.
            logger.warning("streams_database_down", fault=type(fault).__name__)
            self._try_to_close()
            return _Found((), {}, ())

    def _try_to_close(self) -> None:
        try:
            self._notices.close()
        except DatabaseError:
            connections.close_all()


_poller = Poller()


class Stream:
    """
    The events of one run for one caller, after a given number, until the run ends or the caller loses access.

    `state` and `done` carry the run, `delta` and `log` a piece of text, `usage` the counts, and `closed` the reason for
    the end. A comment every 15 s keeps the connection open.
    """

    def __init__(self, run_id: str, *, caller: Caller, after: int, place: tuple[str, str]) -> None:
        self._run_id, self._caller, self._after = run_id, caller, after
        # If a client disconnects before the response begins, the stream is never iterated.
        self.close = weakref.finalize(self, stream_places.leave, place)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        follower = _Follower(self._run_id, self._caller, self._after)
        try:
            await _leave_thread()
            if follower.seen == 0:
                event = await _poller.read(_run_event, 0, "state", self._run_id)
                if event is None:
                    yield _closed(NotFound())
                    return
                yield event
            _poller.join(follower)
            async for piece in self._due_events(follower):
                yield piece
        finally:
            _poller.leave(follower)
            self.close()

    async def _due_events(self, follower: _Follower) -> AsyncIterator[bytes]:
        while True:
            try:
                await asyncio.wait_for(follower.woken.wait(), COMMENT_SECONDS)
            except TimeoutError:
                yield COMMENT
                continue
            follower.woken.clear()
            while events := await self._try_to_read(follower):
                for seq, kind, event in events:
                    if follower.refusal is not None:
                        break
                    follower.seen = seq
                    yield event
                    if kind == RunChunk.Kind.DONE:
                        return
                if follower.refusal is not None:
                    break
            if follower.refusal is not None:
                yield _closed(follower.refusal)
                return
            if follower.progress is not None and follower.progress.ended and follower.seen >= follower.progress.last:
                if follower.seen == 0:
                    # A gateway run stores no events: only its end is sent.
                    end = await _poller.read(_run_event, 1, "done", self._run_id)
                    yield _closed(NotFound()) if end is None else end
                return

    async def _try_to_read(self, follower: _Follower) -> list[tuple[int, str, bytes]]:
        """Read the next events, up to the last poll: that poll checked that the caller may read them."""
        progress = follower.progress
        if follower.refusal is not None or progress is None or follower.seen >= progress.last:
            return []
        try:
            return await _poller.read(_events, follower.run_id, follower.seen, progress.last)
        except DatabaseError as fault:
            logger.warning("streams_database_down", fault=type(fault).__name__)
            return []


def _events(run_id: str, after: int, until: int) -> list[tuple[int, str, bytes]]:
    """Read the next events of a run up to a number: as many as fit the limits, but at least one if there is one."""
    following = RunChunk.objects.filter(run_id=run_id, seq__gt=after, seq__lte=until).order_by("seq")
    sizes = following.values_list("seq", Length(Cast("data", TextField())))[:EVENTS_AT_ONCE]
    last, total = after, 0
    for seq, size in sizes:
        total += size
        if total > CHARACTERS_AT_ONCE and last > after:
            break
        last = seq
    events = []
    for seq, kind, data in following.filter(seq__lte=last).values_list("seq", "kind", "data"):
        if kind in {RunChunk.Kind.STATE, RunChunk.Kind.DONE}:
            event = _run_event(seq, kind, run_id)
        else:
            event = _event(
                seq, kind, RunUsageAnswer(Usage.from_dict(data)).data if kind == RunChunk.Kind.USAGE else data
            )
        if event is not None:
            events.append((seq, kind, event))
    return events


def _run_event(seq: int, kind: str, run_id: str) -> bytes | None:
    """
    Build an event that carries the run. None if the run is gone.

    In bytes: the answer of a serializer refers to it with all of its fields, and a stream would keep them.
    """
    try:
        return _event(seq, kind, RunAnswer(run_to_show(run_id)).data)
    except Run.DoesNotExist:
        return None


def _event(seq: int, kind: str, data: Any) -> bytes:
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def _closed(refusal: RenseiError) -> bytes:
    """Build the event that ends a stream early. It has no `id`, so `Last-Event-ID` stays that of the last event."""
    data = {"code": refusal.code, "detail": refusal.detail}
    return f"event: closed\ndata: {json.dumps(data)}\n\n".encode()


async def _leave_thread() -> None:
    """Release the connection and thread of this request. Otherwise it holds both until its response ends."""
    await sync_to_async(connections.close_all)()
    leave_thread(only_ends=True)
