"""
A cache whose values are less than a second behind the database.

Concurrent requests for the same key share one load. A value in use is reloaded before it expires, so that no request
waits for it. A value that has expired is never returned, and is dropped: values hold opened keys, which must not stay
in memory without need.
"""

import asyncio
import math
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rensei.core.errors import DATABASE_FAULTS

# A change takes effect at most 1 s after its commit. The other 0.1 s is for the last request that uses the old value.
LIFETIME_SECONDS = 0.9
RENEW_AFTER_SECONDS = 0.6
# While nothing changes, a value in use is kept for this time.
KEPT_SECONDS = 60
RENEW_KEPT_AFTER_SECONDS = 45
CHECK_SECONDS = 0.3
ENTRIES_MAX = 10_000

Value = TypeVar("Value")


class ChangeWatch:
    """
    Checks, while caches hold values, whether what these were loaded from has changed.

    :param has_changed: returns whether something has changed since its last call, and runs in the thread of `executor`
    """

    def __init__(self, has_changed: Callable[[], bool], executor: Executor) -> None:
        self._has_changed = has_changed
        self._executor = executor
        self._caches: list[ShortLivedCache[Any]] = []
        self._task: asyncio.Task[None] | None = None
        # A value whose load began since the last change is as good as loaded at the last check.
        self.changed_at = math.inf
        self.checked_at = -math.inf

    def add(self, cache: "ShortLivedCache[Any]") -> None:
        self._caches.append(cache)

    def start(self) -> None:
        """Check from now on, until no cache holds a value."""
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._check())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _check(self) -> None:
        loop = asyncio.get_running_loop()
        while any(cache.holds_values for cache in self._caches):
            began = time.monotonic()
            try:
                has_changed = await loop.run_in_executor(self._executor, self._has_changed)
            except DATABASE_FAULTS:
                # Nothing is known about what was loaded, so it expires now.
                has_changed = True
            if has_changed:
                for cache in self._caches:
                    cache.note_change()
                self.changed_at = time.monotonic()
            else:
                self.checked_at = began
            await asyncio.sleep(CHECK_SECONDS)


@dataclass(slots=True)
class _Entry(Generic[Value]):
    value: Value
    loaded_at: float
    # The last moment at which the value was known to be current, unless the watch knows of a later one.
    current_at: float
    used_at: float
    # Whether it may be kept while nothing changes.
    is_kept: bool


class ShortLivedCache(Generic[Value]):
    """
    A cache of values by key. It is bound to one event loop, and loads in threads.

    :param watch: notices changes of what is loaded; without one, each value is loaded anew in less than a second
    :param is_kept: returns whether a value depends on nothing but what the watch notices
    """

    def __init__(
        self, executor: Executor, watch: ChangeWatch | None = None, *, is_kept: Callable[[Value], bool] = bool
    ) -> None:
        self._executor = executor
        self._watch = watch
        self._is_kept = is_kept
        self._entries: dict[Hashable, _Entry[Value]] = {}
        self._loads: dict[Hashable, asyncio.Future[Value]] = {}
        if watch is not None:
            watch.add(self)

    @property
    def holds_values(self) -> bool:
        return bool(self._entries)

    def kept(self, key: Hashable) -> Value | None:
        """Return a value that does not have to be reloaded yet, or None. Almost every request takes this path."""
        entry = self._entries.get(key)
        now = time.monotonic()
        if entry is None or self._is_due(entry, now):
            return None
        entry.used_at = now
        return entry.value

    async def get(self, key: Hashable, load: Callable[[], Value]) -> Value:
        """Return a value that is less than a second old. If there is none, load it in a thread."""
        entry = self._entries.get(key)
        now = time.monotonic()
        if entry is not None and now < self._expires_at(entry):
            if self._is_due(entry, now) and key not in self._loads:
                # An error of this load is ignored here: the next request loads again and gets the error itself.
                self._start(key, load).add_done_callback(lambda done: done.cancelled() or done.exception())
            entry.used_at = now
            return entry.value
        # Shielded: the cancellation of one request must not cancel the load for the others.
        return await asyncio.shield(self._loads.get(key) or self._start(key, load))

    def note_change(self) -> None:
        """Stop keeping the values loaded so far: each expires as if it had not been kept."""
        for entry in self._entries.values():
            entry.current_at, entry.is_kept = self._current_at(entry), False

    def _current_at(self, entry: _Entry[Value]) -> float:
        watch = self._watch
        if watch is None or not entry.is_kept or entry.loaded_at < watch.changed_at:
            return entry.current_at
        return max(entry.current_at, watch.checked_at)

    def _is_due(self, entry: _Entry[Value], now: float) -> bool:
        is_old = now - entry.loaded_at > RENEW_KEPT_AFTER_SECONDS
        return is_old or now - self._current_at(entry) > RENEW_AFTER_SECONDS

    def _expires_at(self, entry: _Entry[Value]) -> float:
        return min(
            entry.loaded_at + KEPT_SECONDS,
            entry.used_at + LIFETIME_SECONDS,
            self._current_at(entry) + LIFETIME_SECONDS,
        )

    def _start(self, key: Hashable, load: Callable[[], Value]) -> "asyncio.Future[Value]":
        began = time.monotonic()
        future = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._executor, load))
        self._loads[key] = future

        def keep(done: "asyncio.Future[Value]") -> None:
            self._loads.pop(key, None)
            if not done.cancelled() and done.exception() is None:
                if len(self._entries) >= ENTRIES_MAX:
                    self._entries.clear()
                value = done.result()
                self._entries[key] = entry = _Entry(value, began, began, time.monotonic(), self._is_kept(value))
                self._drop_expired(key, entry)
                if self._watch is not None:
                    self._watch.start()

        future.add_done_callback(keep)
        return future

    def _drop_expired(self, key: Hashable, entry: _Entry[Value]) -> None:
        """Drop an entry if it has expired, otherwise look again when it is due to."""
        if self._entries.get(key) is not entry:
            return
        remaining = self._expires_at(entry) - time.monotonic()
        if remaining > 0:
            asyncio.get_running_loop().call_later(remaining, self._drop_expired, key, entry)
        else:
            del self._entries[key]
