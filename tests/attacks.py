"""
Attacks have two sizes: a slice in the ordinary suite, and the whole with `make attack`, which sets ATTACK=1.

They show growth: the cost of an input is compared with that of one many times as long. Memory and calls are counted
exactly; where neither shows the work, CPU time is compared over a factor that leaves no doubt.
"""

import os
import re
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

IS_WHOLE = os.environ.get("ATTACK") == "1"

Value = TypeVar("Value")


def sized(piece: Value, whole: Value) -> Value:
    """Choose the size of an attack: a piece of it, unless the whole was asked for."""
    return whole if IS_WHOLE else piece


def peak_bytes(work: Callable[[], object]) -> int:
    """Count the most memory that Python's objects take while the work is done, beyond what was there before."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def resident_peak(work: Callable[[], object]) -> int:
    """Count the most memory that the whole process takes while the work is done, in bytes, beyond what it had."""
    # Linux forgets the highest figure so far.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def cpu_seconds(work: Callable[[], object]) -> float:
    """Measure the CPU time of this thread for the work: the best of three, which other processes disturb least."""
    times = []
    for _ in range(3):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return min(times)


def grows_linearly(cost: Callable[[int], float], *, size: int, factor: int, ignored: float = 0.0) -> bool:
    """
    Compare the cost at a size with that at a multiple of it.

    Quadratic work costs the factor's square, linear work the factor: between the two we allow four times the factor.

    :param ignored: a cost that is too small to be compared, such as 10 ms
    """
    return cost(size * factor) <= 4 * factor * cost(size) + ignored
