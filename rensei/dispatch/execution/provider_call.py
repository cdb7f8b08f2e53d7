"""One call to a provider in progress: the output received so far, and the events written for the run."""

import queue as threads
import threading
import time
from collections.abc import Generator
from contextlib import closing
from typing import Any

import structlog
from django.db import DatabaseError

from integrations.keys import leaks
from integrations.providers.base import Answer, ProviderStream, StreamEvent, TextDelta, UsageReport
from rensei.core.transactions import leave_database
from rensei.core.usage import Usage, UsagePart, total
from rensei.dispatch.execution.lease_renewal import LiveRun
from rensei.dispatch.models import Attempt, Run, RunChunk
from rensei.dispatch.queue import claims

FLUSH_SECONDS = 0.25
FLUSH_BYTES = 2048
PIECE_CHARACTERS = 16 * 1024

logger = structlog.get_logger(__name__)


class ProviderCall:
    """Reads one attempt's stream, and appends the run's events as they arrive."""

    def __init__(self, run: Run, live: LiveRun, attempt: Attempt) -> None:
        self.run = run
        self.live = live
        self.attempt = attempt
        self.usage: Usage | None = None
        self.parts: tuple[UsagePart, ...] = ()
        self.request_id = ""
        self.unheard: Usage | None = None
        self._texts: list[str] = []
        self._events = TextEvents(run, live)
        self._flushed_at = time.monotonic()

    @property
    def text(self) -> str:
        """The output so far. It is joined when it is read: added to one text, each piece would copy all before it."""
        return "".join(self._texts)

    def follow(self, stream: ProviderStream) -> Answer | None:
        """
        Read a call to its end. Returns None if it was stopped first; the connection is closed then.

        :raises ProviderFailure: if the call fails
        """
        leave_database()
        try:
            with closing(_events(stream)) as events:
                for event in events:
                    if isinstance(event, Answer):
                        self._flush(is_end=True)
                        return event
                    if self.live.stop is not None:
                        return None
                    self._take(event)
            return None
        finally:
            stream.close()
            if parts := stream.parts_so_far():
                self.usage, self.parts = total(parts), parts
            elif stream.is_under_way:
                # It is streamed, or only fills the cache: without an event there is no output.
                self.unheard = Usage(input_tokens=self.attempt.input_tokens_estimate)

    def _take(self, event: StreamEvent | None) -> None:
        if isinstance(event, TextDelta):
            self._texts.append(event.text)
            self._events.pending += event.text
        elif isinstance(event, UsageReport):
            if self.usage is None:
                note_event(self.run, self.live, kind=RunChunk.Kind.USAGE, data=event.usage.as_dict())
            self.usage, self.parts, self.request_id = event.usage, event.parts, event.request_id
        due = time.monotonic() - self._flushed_at >= FLUSH_SECONDS
        if due or len(self._events.pending.encode()) >= FLUSH_BYTES:
            self._flush()

    def _flush(self, *, is_end: bool = False) -> None:
        self._events.write(is_end=is_end)
        self._flushed_at = time.monotonic()


class TextEvents:
    """The text of a run's answer as events, or another text. `pending` has arrived and is not yet written."""

    def __init__(self, run: Run, live: LiveRun, *, kind: RunChunk.Kind = RunChunk.Kind.DELTA) -> None:
        self.pending = ""
        self._run, self._live, self._kind = run, live, kind

    def write(self, *, is_end: bool = False) -> None:
        """
        Write the text that has arrived, but for an end that may be the beginning of a key.

        While the database cannot tell whether a key is in it, the text is not written: see `_log_missed`.
        """
        text, self.pending = (self.pending, "") if is_end else leaks.split_unfinished(self.pending)
        if not text:
            return
        try:
            found = leaks.find_or_blot(text, org=self._run.org)
        except DatabaseError as fault:
            _log_missed(fault)
            leave_database()
            return
        text = found.blot(text)
        # What is beyond the most that is stored is not stored at all, so that it is stored in pieces.
        for place in range(0, len(text), PIECE_CHARACTERS):
            piece = text[place : place + PIECE_CHARACTERS]
            note_event(self._run, self._live, kind=self._kind, data={"text": piece})


def note_event(run: Run, live: LiveRun, *, kind: RunChunk.Kind, data: dict[str, Any]) -> None:
    """Append an event of a run, and order its stop if the lease is lost."""
    try:
        if not claims.add_chunk(run, kind=kind, data=data):
            live.order(claims.why_lost(run))
    except DatabaseError as fault:
        _log_missed(fault)
    leave_database()


def _log_missed(fault: DatabaseError) -> None:
    """Log that event streams miss a piece while the database is down. The whole output is written at the end."""
    logger.warning("chunk_not_written", fault=type(fault).__name__)


def _events(stream: ProviderStream) -> Generator[StreamEvent | None, None, None]:
    """
    Read a stream in a separate thread, so that a silent provider does not block the checks for a stop.

    Yields None if nothing arrived within `FLUSH_SECONDS`.
    """
    arrived: threads.Queue[StreamEvent | BaseException | None] = threads.Queue(maxsize=1000)
    closed = threading.Event()

    def read() -> None:
        outcome: BaseException | None = None
        try:
            for event in stream:
                arrived.put(event)
                if closed.is_set():
                    return
        except BaseException as fault:  # noqa: BLE001 - it is raised again in the thread that waits for it
            outcome = fault
        arrived.put(outcome)

    threading.Thread(target=read, name="provider-stream", daemon=True).start()
    try:
        while True:
            try:
                item = arrived.get(timeout=FLUSH_SECONDS)
            except threads.Empty:
                yield None
                continue
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            yield item
    finally:
        # The reading thread may be blocked by a full queue. Emptying it lets the thread check `closed` and end.
        closed.set()
        while not arrived.empty():
            arrived.get_nowait()
