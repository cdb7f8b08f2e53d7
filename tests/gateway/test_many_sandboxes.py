"""
Agents in many sandboxes at once, which wait on the one loop of a worker: five in the suite, and more for figures.

    SANDBOXES=100 python -m pytest tests/gateway/test_many_sandboxes.py -s
"""

import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rensei.dispatch.execution.sandboxes import DATABASE_THREADS, PREPARED_AT_ONCE, Sandboxes
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.pools.bubblewrap import _descendants, _own_kib
from tests.dispatch.reconcile import assert_explained
from tests.gateway.test_agents import dispatch  # noqa: F401 - a fixture
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

COUNT = int(os.environ.get("SANDBOXES", "5"))
# Until the last has begun, the first waits.
PAUSE = 0.5 if COUNT == 5 else 0.5 * COUNT
WATCHED_SECONDS = 0.2 if COUNT == 5 else 10.0
LINES = f"print(ask('One.')[0]); import time; time.sleep({PAUSE}); print(ask('Two.')[0])"


def test_hold_no_thread_while_they_wait(
    byok: Any,
    dispatch: Callable[..., Run],  # noqa: F811 - the fixture
    running: Sandboxes,
    settings: Any,
    simulator: Any,
) -> None:
    # One organization has two thirds of them.
    settings.RENSEI_SANDBOXES_AT_ONCE = settings.RENSEI_ORG_RUNS_AT_ONCE = settings.RENSEI_POOL_SLOTS = 2 * COUNT
    threads, before, begun = threading.active_count(), _own_kib(os.getpid()), time.monotonic()
    runs = [dispatch(LINES) for _ in range(COUNT)]
    while running.start_next():
        pass
    settled = Attempt.objects.filter(state=Attempt.State.SETTLED)
    wait_until(lambda: settled.count() >= COUNT, what="the first calls", seconds=30 + 2 * COUNT)

    started = time.monotonic() - begun
    busy = _processor_seconds()
    time.sleep(WATCHED_SECONDS)
    busy = (_processor_seconds() - busy) / WATCHED_SECONDS
    added = threading.active_count() - threads
    worker, inside = _own_kib(os.getpid()) - before, sum(map(_own_kib, _inside()))
    wait_until(lambda: not running._running, what="the end", seconds=60 + 4 * COUNT)

    print(
        f"{COUNT} agents in {started:.1f} s; while they wait: {added} threads, "
        f"{worker / 1024:.0f} MiB more in the worker, {inside / 1024 / COUNT:.1f} MiB in each sandbox, "
        f"{100 * busy:.1f} % of a core; "
        f"{time.monotonic() - begun:.1f} s to the end"
    )
    # Those of the loop's own pool, at most, and none for each sandbox.
    assert added <= DATABASE_THREADS + PREPARED_AT_ONCE + min(32, (os.cpu_count() or 1) + 4)
    ended = Run.objects.filter(id__in=[run.id for run in runs])
    assert set(ended.values_list("state", "output_text")) == {(Run.State.SUCCEEDED, "200\n200\n")}
    assert_explained(simulator)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _inside() -> list[int]:
    """The processes of sandboxes, which this process has started."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    own = {int(pid) for path in children for pid in path.read_text().split()}
    boxes = [pid for pid in own if b"bwrap" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return [each for pid in boxes for each in _descendants(pid)]
