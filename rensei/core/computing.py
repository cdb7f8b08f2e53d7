"""
One request thread of a process computes at a time.

All threads of a process share one interpreter, and the event loop, which forwards the calls of the gateway, waits for
it behind each thread that wants it: a hundred threads whose providers answer together would stop all calls for a tenth
of a second. So one of them computes at a time. A thread gives its turn away while it waits for the database or for
another machine, so no request is slower for it.

Turns are for speed, and are no lock: a thread that has waited for one long enough goes on without it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rensei.core.limits import limit

TURNS = limit(
    1,
    "at once",
    what="Threads of requests to REST and pages that compute, each process; those that wait for anything do not",
    told="the caller: its request waits for a turn, 0.25 s at most each time",
)
WAIT_SECONDS = 0.25

_turns = threading.BoundedSemaphore(TURNS)
_thread = threading.local()


@contextmanager
def in_turn() -> Iterator[None]:
    """Compute in a turn, if one becomes free in time."""
    _take()
    try:
        yield
    finally:
        _give_back()


@contextmanager
def outside_of_turn() -> Iterator[None]:
    """Give the turn of this thread to others while it waits, if it has one, and take another one afterwards."""
    takes_turns = _give_back()
    try:
        yield
    finally:
        if takes_turns:
            _take()


def _take() -> None:
    _thread.has_turn = _turns.acquire(timeout=WAIT_SECONDS)


def _give_back() -> bool:
    """Release the turn of this thread, if it has one. Return whether the thread is within `in_turn`."""
    has_turn: bool | None = getattr(_thread, "has_turn", None)
    if has_turn:
        _turns.release()
    _thread.has_turn = None
    return has_turn is not None
