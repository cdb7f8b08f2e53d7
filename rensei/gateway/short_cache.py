"""
A short-lived cache: its values are less than a second old.

Concurrent requests for the same key share one load. A value in use is reloaded before it expires, so that no request
waits for it. A value whose load began more than `LIFETIME_SECONDS` ago is never returned, and is dropped: values hold
opened keys, which must not stay in memory without need.
"""

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

# A change takes effect at most 1 s after its commit. The other 0.1 s is for the last request that uses the old value.
LIFETIME_SECONDS = 0.9
RENEW_AFTER_SECONDS = 0.6
ENTRIES_MAX = 10_000

Value = TypeVar("Value")


@dataclass(slots=True)
class _Entry(Generic[Value]):
    value: Value
    loaded_at: float


class ShortLivedCache(Generic[Value]):
    """A cache of values by key. It is bound to one event loop, and loads in threads."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._entries: dict[Hashable, _Entry[Value]] = {}
        self._loads: dict[Hashable, asyncio.Future[Value]] = {}

    def kept(self, key: Hashable) -> Value | None:
        """Return a value that does not have to be reloaded yet, or None. Almost every request takes this path."""
        entry = self._entries.get(key)
        if entry is None or time.monotonic() - entry.loaded_at > RENEW_AFTER_SECONDS:
            return None
        return entry.value

    async def get(self, key: Hashable, load: Callable[[], Value]) -> Value:
        """Return a value that is less than a second old. If there is none, load it in a thread."""
        entry = self._entries.get(key)
        age = time.monotonic() - entry.loaded_at if entry else LIFETIME_SECONDS
        if entry is not None and age < LIFETIME_SECONDS:
            if age > RENEW_AFTER_SECONDS and key not in self._loads:
                # An error of this load is ignored here: the next request loads again and gets the error itself.
                self._start(key, load).add_done_callback(lambda done: done.cancelled() or done.exception())
            return entry.value
        # Shielded: the cancellation of one request must not cancel the load for the others.
        return await asyncio.shield(self._loads.get(key) or self._start(key, load))

    def _start(self, key: Hashable, load: Callable[[], Value]) -> "asyncio.Future[Value]":
        began = time.monotonic()
        future = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._executor, load))
        self._loads[key] = future

        def keep(done: "asyncio.Future[Value]") -> None:
            self._loads.pop(key, None)
            if not done.cancelled() and done.exception() is None:
                if len(self._entries) >= ENTRIES_MAX:
                    self._entries.clear()
                self._entries[key] = entry = _Entry(done.result(), began)
                remaining = began + LIFETIME_SECONDS - time.monotonic()
                asyncio.get_running_loop().call_later(max(0, remaining), self._drop, key, entry)

        future.add_done_callback(keep)
        return future

    def _drop(self, key: Hashable, entry: _Entry[Value]) -> None:
        if self._entries.get(key) is entry:
            del self._entries[key]
