"""The share of an organization in what a process does at the same time."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary


class ByteShares:
    """
    Counts the bytes that each organization holds in this process, or the places. It belongs to one event loop.

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
    """
    Work of threads that waits: one piece of each organization at a time, and a few of all together.

    At most one piece of each organization waits for a place, and those that wait get one in the order in which they
    came. A semaphore would let a thread that is running go before them.
    """

    def __init__(self, at_once: int) -> None:
        self._turns: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._changed = threading.Condition()
        self._free = at_once
        self._line: list[object] = []

    @contextmanager
    def of(self, org_id: str, *, seconds: float | None = None) -> Iterator[None]:
        """
        Wait for the organization's turn, and for a place.

        :param seconds: how long for both together; None: as long as it takes
        :raises TimeoutError: if it takes longer
        """
        until = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            turn = self._turns.setdefault(org_id, threading.Lock())
        if not turn.acquire(timeout=_left(until)):
            raise TimeoutError
        try:
            self._take_place(until)
            try:
                yield
            finally:
                self._leave_place()
        finally:
            turn.release()

    def _take_place(self, until: float | None) -> None:
        """:raises TimeoutError: if none is free in time"""
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            timeout = None if until is None else _left(until)
            is_next = self._changed.wait_for(lambda: self._free and self._line[0] is ticket, timeout)
            self._line.remove(ticket)
            self._changed.notify_all()
            if not is_next:
                raise TimeoutError
            self._free -= 1

    def _leave_place(self) -> None:
        with self._changed:
            self._free += 1
            self._changed.notify_all()


def _left(until: float | None) -> float:
    """Return the seconds that are left, as a lock takes them: -1 is for ever."""
    return -1 if until is None else max(0.0, until - time.monotonic())


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
