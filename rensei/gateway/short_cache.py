"""
A cache whose values are less than a second behind the database.

Concurrent requests for the same key share one load. A value in use is reloaded before it expires, so that no request
waits for it. A value that has expired is never returned. Opened keys are dropped when they expire, and are not kept
when they are no longer used, because they must not stay in memory without need.
"""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

from rensei.core.errors import DATABASE_FAULTS
from rensei.core.limits import limit
from rensei.dispatch.decision_changes import EVERY_ORG

# A change takes effect at most 1 s after its commit. The other 0.1 s is for the last request that uses the old value.
LIFETIME_SECONDS = 0.9
RENEW_AFTER_SECONDS = 0.6
# While nothing changes, a value is kept for this time, so that a person's next request does not wait for a load.
KEPT_SECONDS = 900
RENEW_KEPT_AFTER_SECONDS = 45
CHECK_SECONDS = 0.3
ENTRIES_MAX = limit(
    2_000,
    "values",
    what="Callers of tokens, routes of calls and opened keys that the gateway keeps in memory, each process",
    told="the caller: the first one of the organization with the most is dropped, and its next call loads it again",
)

Value = TypeVar("Value")

logger = structlog.get_logger(__name__)


class ChangeWatch:
    """
    Checks, while caches hold values, whether what these were loaded from has changed.

    :param changed_orgs: returns the ids of the organizations for which something has changed since its last call, or
        `EVERY_ORG` among them; it runs in the thread of `executor`
    :param goes_on: whether changes are of interest although no cache holds a value
    """

    def __init__(
        self,
        changed_orgs: Callable[[], Collection[str]],
        executor: Executor,
        *,
        goes_on: Callable[[], bool] = lambda: False,
    ) -> None:
        self._changed_orgs = changed_orgs
        self._goes_on = goes_on
        self._executor = executor
        self._caches: list[ShortLivedCache[Any]] = []
        self._task: asyncio.Task[None] | None = None
        self._is_failing = False
        # Until the first check, everything counts as changed.
        self._changed_at: dict[str, float] = {EVERY_ORG: math.inf}
        # Values that are kept are as good as loaded at this moment.
        self.checked_at = -math.inf

    def add(self, cache: "ShortLivedCache[Any]") -> None:
        self._caches.append(cache)

    def start(self) -> None:
        """Check from now on, until no cache holds a value and nothing else asks for it."""
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._check())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def has_changed_since(self, moment: float, org_id: str) -> bool:
        """Return whether a change for the organization was noticed after a moment."""
        changed_at = self._changed_at
        return moment < changed_at[EVERY_ORG] or moment < changed_at.get(org_id, -math.inf)

    async def _check(self) -> None:
        loop = asyncio.get_running_loop()
        while any(cache.holds_values for cache in self._caches) or self._goes_on():
            began = time.monotonic()
            try:
                orgs = await loop.run_in_executor(self._executor, self._changed_orgs)
            except DATABASE_FAULTS:
                # Nothing is known about what was loaded, so it expires now.
                orgs = {EVERY_ORG}
            except Exception:
                # Everything is loaded anew, as where nothing is watched. The first error of a series is logged.
                if not self._is_failing:
                    logger.exception("changes_unknown")
                self._is_failing, orgs = True, {EVERY_ORG}
            else:
                self._is_failing = False
            self._note(orgs)
            self.checked_at = began
            await asyncio.sleep(CHECK_SECONDS)

    def _note(self, orgs: Collection[str]) -> None:
        """Let the values of organizations expire that have changed. They were current at the check before this one."""
        now = time.monotonic()
        if len(self._changed_at) > ENTRIES_MAX:
            orgs = {EVERY_ORG}
        if EVERY_ORG in orgs:
            self._changed_at.clear()
        self._changed_at |= dict.fromkeys(orgs, now)
        for cache in self._caches if orgs else ():
            cache.note_change(orgs)


@dataclass(slots=True)
class _Entry(Generic[Value]):
    value: Value
    loaded_at: float
    # The last moment at which the value was known to be current. A check of the watch may have been later.
    current_at: float
    used_at: float
    org_id: str
    # Whether it may be kept while nothing changes.
    is_kept: bool
    # Drops the entry when it has expired. A timer refers to its entry, so it is cancelled where the entry is dropped.
    timer: asyncio.TimerHandle | None = None


class ShortLivedCache(Generic[Value]):
    """
    A cache of values by key. It is bound to one event loop, and loads in threads.

    :param watch: notices changes of what is loaded; without one, each value is loaded anew in less than a second
    :param org_of: returns the id of the organization whose changes concern a value with its key, or None for a value
        that depends on more than the watch notices, and is not kept
    :param holds_secrets: whether a value is dropped as soon as it expires, and expires after 0.9 s without use
    """

    def __init__(
        self,
        executor: Executor,
        watch: ChangeWatch | None = None,
        *,
        org_of: Callable[[Any, Value], str | None] = lambda key, value: None,
        holds_secrets: bool = False,
    ) -> None:
        self._executor = executor
        self._watch = watch
        self._org_of = org_of
        self._holds_secrets = holds_secrets
        self._entries: dict[Hashable, _Entry[Value]] = {}
        # The keys of each organization, in the order of their loads.
        self._keys_of: dict[str, dict[Hashable, None]] = {}
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

    async def get(self, key: Hashable, load: Callable[[], Value], *, turn: asyncio.Lock | None = None) -> Value:
        """Return a value that is less than a second behind. If there is none, load it in a thread, in turn."""
        entry = self._entries.get(key)
        now = time.monotonic()
        if entry is not None and now < self._expires_at(entry):
            if self._is_due(entry, now) and key not in self._loads:
                # An error of this load is ignored here: the next request loads again and gets the error itself.
                self._start(key, load).add_done_callback(lambda done: done.cancelled() or done.exception())
            entry.used_at = now
            return entry.value
        if turn is not None and key not in self._loads:
            async with turn:
                return await self.get(key, load)
        # Shielded: the cancellation of one request must not cancel the load for the others.
        return await asyncio.shield(self._loads.get(key) or self._start(key, load))

    def note_change(self, orgs: Collection[str]) -> None:
        """Stop keeping the values of these organizations: each expires as if it had not been kept."""
        for entry in self._entries.values():
            if entry.is_kept and (entry.org_id in orgs or EVERY_ORG in orgs):
                entry.current_at, entry.is_kept = self._current_at(entry), False

    def _current_at(self, entry: _Entry[Value]) -> float:
        if self._watch is None or not entry.is_kept:
            return entry.current_at
        return max(entry.current_at, self._watch.checked_at)

    def _is_due(self, entry: _Entry[Value], now: float) -> bool:
        is_old = now - entry.loaded_at > RENEW_KEPT_AFTER_SECONDS
        return is_old or now - self._current_at(entry) > RENEW_AFTER_SECONDS

    def _expires_at(self, entry: _Entry[Value]) -> float:
        expires_at = min(entry.loaded_at + KEPT_SECONDS, self._current_at(entry) + LIFETIME_SECONDS)
        return min(expires_at, entry.used_at + LIFETIME_SECONDS) if self._holds_secrets else expires_at

    def _start(self, key: Hashable, load: Callable[[], Value]) -> "asyncio.Future[Value]":
        began = time.monotonic()
        future = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._executor, load))
        self._loads[key] = future

        def keep(done: "asyncio.Future[Value]") -> None:
            self._loads.pop(key, None)
            if not done.cancelled() and done.exception() is None:
                self._add(key, self._entry(key, done.result(), began))
                if self._watch is not None:
                    self._watch.start()

        future.add_done_callback(keep)
        return future

    def _entry(self, key: Hashable, value: Value, began: float) -> _Entry[Value]:
        org_id = self._org_of(key, value)
        is_kept = org_id is not None and self._watch is not None and not self._watch.has_changed_since(began, org_id)
        return _Entry(value, began, began, time.monotonic(), org_id or EVERY_ORG, is_kept)

    def _add(self, key: Hashable, entry: _Entry[Value]) -> None:
        self._drop(key)
        while len(self._entries) >= ENTRIES_MAX:
            # One organization can make any number of keys, with names of models for example.
            most = max(self._keys_of.values(), key=len)
            self._drop(next(iter(most)))
        self._entries[key] = entry
        self._keys_of.setdefault(entry.org_id, {})[key] = None
        self._drop_when_expired(key, entry)

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        if entry.timer is not None:
            entry.timer.cancel()
        keys = self._keys_of[entry.org_id]
        del keys[key]
        if not keys:
            del self._keys_of[entry.org_id]

    def _drop_when_expired(self, key: Hashable, entry: _Entry[Value]) -> None:
        """Drop an entry if it has expired, otherwise look again when it is due to."""
        remaining = self._expires_at(entry) - time.monotonic()
        if remaining > 0:
            # A timer for each second of each value would be too much where there is nothing to hide.
            delay = remaining if self._holds_secrets else KEPT_SECONDS
            entry.timer = asyncio.get_running_loop().call_later(delay, self._drop_when_expired, key, entry)
        else:
            self._drop(key)
