"""The share of an organization in what a process does at the same time."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary


class ByteShares:
    """
    Counts the bytes that each organization holds in this process. It belongs to one event loop.

    One holds at most half as much as is free, so that a few of them never leave nothing to the others.
    """

    def __init__(self) -> None:
        self.held: Counter[str] = Counter()
        self.total = 0

    def take(self, org_id: str, size: int, *, most: int, of_all: int) -> bool:
        """Count bytes, unless the organization would then hold more than `most`, or more than its share of all."""
        held, total = self.held[org_id] + size, self.total + size
        if held > most or 2 * held > of_all - total:
            return False
        self.held[org_id], self.total = held, total
        return True

    def leave(self, org_id: str, size: int) -> None:
        self.total -= size
        self.held[org_id] -= size
        if not self.held[org_id]:
            del self.held[org_id]


class ThreadTurns:
    """Work of threads that waits: one piece of each organization at a time, and a few of all together."""

    def __init__(self, at_once: int) -> None:
        self._lock = threading.Lock()
        self._turns: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._places = threading.BoundedSemaphore(at_once)

    @contextmanager
    def of(self, org_id: str) -> Iterator[None]:
        with self._lock:
            turn = self._turns.setdefault(org_id, threading.Lock())
        with turn, self._places:
            yield


class Share:
    """Counts what is under way for each organization in this process. It is thread-safe."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()

    def under_way(self, org_id: str) -> int:
        with self._lock:
            return self._under_way[org_id]

    @contextmanager
    def taken(self, org_id: str) -> Iterator[bool]:
        """Take one place while the block runs. False if the organization has none left; the block takes none then."""
        with self._lock:
            is_free = self._under_way[org_id] < self.at_once
            self._under_way[org_id] += is_free
        try:
            yield is_free
        finally:
            with self._lock:
                self._under_way[org_id] -= is_free
                if not self._under_way[org_id]:
                    del self._under_way[org_id]
