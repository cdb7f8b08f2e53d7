"""Waiting for what other processes and threads do."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], *, seconds: float = 30, what: str = "it", every: float = 0.02) -> None:
    """:raises AssertionError: if it does not come true in time"""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds:.0f} s"
        time.sleep(every)
