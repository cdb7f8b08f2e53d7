"""
Values that were true less than a second ago.

One load serves all who ask for the same thing meanwhile. A value that is in use is loaded anew before it is stale, so
that nobody waits for it; a value whose load began more than `LIFETIME_SECONDS` ago is never given to anyone, and is
dropped: values hold opened keys, which must not stay in memory for callers that may never come.
"""

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

# A change counts at most a second after its commit, which leaves a tenth of it for the request that was let in last.
LIFETIME_SECONDS = 0.9
RENEW_AFTER_SECONDS = 0.6
ENTRIES_MAX = 10_000

Value = TypeVar("Value")


@dataclass(slots=True)
class _Entry(Generic[Value]):
    value: Value
    loaded_at: float


class ShortLivedCache(Generic[Value]):
    """A cache of values by key. It belongs to one event loop, and loads in threads."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._entries: dict[Hashable, _Entry[Value]] = {}
        self._loads: dict[Hashable, asyncio.Future[Value]] = {}

    async def get(self, key: Hashable, load: Callable[[], Value]) -> Value:
        """Give a value that was true less than a second ago, loading it in a thread where there is none."""
        entry = self._entries.get(key)
        age = time.monotonic() - entry.loaded_at if entry else LIFETIME_SECONDS
        if entry is not None and age < LIFETIME_SECONDS:
            if age > RENEW_AFTER_SECONDS and key not in self._loads:
                # What goes wrong with it is met by whoever needs the next value.
                self._start(key, load).add_done_callback(lambda done: done.cancelled() or done.exception())
            return entry.value
        # Shielded: a caller who leaves must not take the load away from the others.
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
