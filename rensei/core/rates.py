"""
Counts how often something happens in a window of time, across all processes, and drops no count early.

A process counts in its memory and exchanges its counts with the database every `EXCHANGE_SECONDS`, in one statement and
in a thread, so a request waits for no database. Within a window, a limit is exceeded by at most what the other
processes accept between two exchanges. Where one request too many would do harm, `count_exactly` counts in the
database at once. Without the database, limits hold for each process's own counts, which is logged once a minute.
"""

import functools
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import NamedTuple

import structlog
from django.db import connection

from rensei.core import periods, rate_store
from rensei.core.errors import DATABASE_FAULTS, RateLimited
from rensei.core.limits import limit
from rensei.core.rate_store import Window

EXCHANGE_SECONDS = 0.25
SWEEP_SECONDS = 1.0
WARN_SECONDS = 60.0
COUNTERS_MAX = limit(
    20_000,
    "counters",
    what="Counters of one kind of rate limit that a process keeps; further callers of it share one until others end",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`",
)

# Callers of one limit may be of these kinds.
_CALLERS = frozenset({"address", "token", "person"})

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Counter:
    """`shared` is the count in the database for all processes, `pending` what this process has not sent yet."""

    shared: int
    pending: int
    ends_at: float


class LimitUsage(NamedTuple):
    """A caller's use of one limit."""

    limit: int
    window: Window

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.window.total)

    @property
    def is_over(self) -> bool:
        return self.window.total > self.limit


def kind_of(key: str) -> str:
    """Return the kind of a counter, with the kind of its caller where it has one: `api:address` is not `api:token`."""
    kind, _, caller = key.partition(":")
    of, separator, _ = caller.partition(":")
    return f"{kind}:{of}" if separator and of in _CALLERS else kind


class Rates:
    """The counters of one process. It is thread-safe."""

    def __init__(self, *, timer: Callable[[], float] = time.time) -> None:
        self.timer = timer
        self._lock = threading.Lock()
        self._counters: dict[str, _Counter] = {}
        # How many there are of each kind. Anyone can make keys of addresses, which must not fill those of tokens.
        self._numbers: Counter[str] = Counter()
        self._changed: set[str] = set()
        self._has_changed = threading.Event()
        self._swept_at = 0.0
        self._warned_at = 0.0

    def count(self, key: str, *, seconds: float, by: int = 1) -> Window:
        """
        Count in memory, for the next exchange. By 0, it only requests the other processes' counts.

        :param key: the kind of limit and the caller, as `kind:caller`
        """
        return self.count_each([(key, seconds, by)])[0]

    def count_each(self, counts: Iterable[tuple[str, float, int]]) -> list[Window]:
        """Count for several keys together. Each has the seconds of its window, and the number to add."""
        now = self.timer()
        windows = []
        with self._lock:
            for key, seconds, by in counts:
                counter = self._counters.get(key)
                if counter is None or counter.ends_at <= now:
                    key, counter = self._counter(key, now=now, ends_at=now + seconds)
                counter.pending += by
                self._changed.add(key)
                windows.append(Window(counter.shared + counter.pending, counter.ends_at))
        if not self._has_changed.is_set():
            self._has_changed.set()
        return windows

    def count_exactly(self, key: str, *, seconds: float, by: int = 1) -> Window:
        """Count in the database at once: simultaneous requests get a number each."""
        now = self.timer()
        try:
            window = rate_store.add({key: Window(by, now + seconds)}, now=now)[key]
        except DATABASE_FAULTS as fault:
            self._warn(fault)
            return self.count(key, seconds=seconds, by=by)
        with self._lock:
            kept, counter = self._counter(key, now=now, ends_at=window.ends_at)
            if kept == key:
                counter.shared, counter.ends_at = max(counter.shared, window.total), window.ends_at
        return window

    def known(self, key: str) -> Window:
        """Return this process's count of a window, and count nothing. A window that has not begun is 0, and over."""
        now = self.timer()
        with self._lock:
            counter = self._counters.get(key)
            if counter is None or counter.ends_at <= now:
                return Window(0, now)
            return Window(counter.shared + counter.pending, counter.ends_at)

    def refusal(self, ends_at: float) -> RateLimited:
        """Make the error for a full window, with the time that is left of it."""
        seconds = max(1, math.ceil(ends_at - self.timer()))
        return RateLimited(seconds=seconds, extra={"retryAfter": seconds})

    def clear(self, key: str) -> None:
        """End the window of a key, in the database too. The counts in other processes' memory remain."""
        self.forget(key)
        rate_store.clear(key)

    def forget(self, key: str | None = None) -> None:
        """Drop this process's counts of one key, or of all."""
        with self._lock:
            if key is None:
                self._counters.clear()
                self._numbers.clear()
                self._changed.clear()
            else:
                if self._counters.pop(key, None) is not None:
                    self._numbers[kind_of(key)] -= 1
                self._changed.discard(key)

    def exchange(self) -> None:
        """Send the new counts to the database, and read those of the other processes."""
        now = self.timer()
        with self._lock:
            keys, self._changed = self._changed, set()
            told = {}
            for key in keys:
                counter = self._counters.get(key)
                if counter is not None and counter.ends_at > now:
                    told[key] = Window(counter.pending, counter.ends_at)
                    counter.shared += counter.pending
                    counter.pending = 0
        try:
            stored = rate_store.add(told, now=now)
        except DATABASE_FAULTS as fault:
            self._warn(fault)
            self._take_back(told)
            return
        with self._lock:
            for key, window in stored.items():
                counter = self._counters.get(key)
                if counter is not None and window.ends_at > now and counter.ends_at >= told[key].ends_at:
                    counter.shared, counter.ends_at = window.total, window.ends_at

    def exchange_until(self, stopped: threading.Event) -> None:
        """Exchange every fraction of a second while there are new counts."""
        while not stopped.is_set():
            self._has_changed.wait()
            self._has_changed.clear()
            stopped.wait(EXCHANGE_SECONDS)
            try:
                self.exchange()
            except Exception:
                logger.exception("rates_not_exchanged")
                connection.close()

    def _counter(self, key: str, *, now: float, ends_at: float) -> tuple[str, _Counter]:
        counter = self._counters.get(key)
        if counter is None and self._numbers[kind := kind_of(key)] >= COUNTERS_MAX:
            self._drop_ended(now)
            if self._numbers[kind] >= COUNTERS_MAX:
                key = f"{kind}:(others)"
                counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = _Counter(0, 0, ends_at)
            self._numbers[kind_of(key)] += 1
        elif counter.ends_at <= now:
            counter.shared, counter.pending, counter.ends_at = 0, 0, ends_at
        return key, counter

    def _drop_ended(self, now: float) -> None:
        """Drop the windows that have ended, at most once a second, since it scans all of them."""
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            self._counters = {key: counter for key, counter in self._counters.items() if counter.ends_at > now}
            self._numbers = Counter(map(kind_of, self._counters))

    def _take_back(self, told: dict[str, Window]) -> None:
        with self._lock:
            for key, window in told.items():
                counter = self._counters.get(key)
                if counter is not None and counter.ends_at == window.ends_at:
                    counter.shared -= window.total
                    counter.pending += window.total
                    self._changed.add(key)
        if told:
            self._has_changed.set()

    def _warn(self, fault: Exception) -> None:
        now = time.monotonic()
        with self._lock:
            is_due = not self._warned_at or now - self._warned_at >= WARN_SECONDS
            if is_due:
                self._warned_at = now
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
        if is_due:
            logger.warning("rates_not_shared", fault=type(fault).__name__, holds="what this process has counted")


rates = Rates()


def start_exchanging() -> None:
    """Exchange this process's counts from now on. A second call does nothing."""
    _start(os.getpid())


def headers_of(kind: str, usages: Iterable[LimitUsage]) -> dict[str, str]:
    """Return the headers that report a caller's use of the narrowest of some limits."""
    return {name.decode(): value.decode() for name, value in header_lines(kind, usages)}


def header_lines(kind: str, usages: Iterable[LimitUsage]) -> list[tuple[bytes, bytes]]:
    """Return the same headers as ASGI sends them."""
    narrowest = min(usages, key=attrgetter("remaining"))
    limit_name, remaining_name, reset_name = _header_names(kind)
    return [
        (limit_name, b"%d" % narrowest.limit),
        (remaining_name, b"%d" % narrowest.remaining),
        (reset_name, _written(narrowest.window.ends_at)),
    ]


@functools.cache
def _header_names(kind: str) -> tuple[bytes, bytes, bytes]:
    prefix = b"rensei-ratelimit-" + kind.encode()
    return prefix + b"-limit", prefix + b"-remaining", prefix + b"-reset"


@functools.lru_cache(maxsize=1024)
def _written(moment: float) -> bytes:
    """Write a moment as RFC 3339. All answers of a window have the same one."""
    return periods.written(datetime.fromtimestamp(moment, UTC), timespec="seconds").encode()


@functools.cache
def _start(pid: int) -> None:
    """Start one thread for each process: a forked child does not inherit its parent's."""
    threading.Thread(target=rates.exchange_until, args=(threading.Event(),), name="rates", daemon=True).start()
