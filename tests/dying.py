"""
Workers that die at a named point, as by `kill -9`.

They are forked from a process that has Django ready, because to start one anew takes longer than what it has to do.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from django.conf import settings

from rensei.dispatch.execution import execute
from rensei.dispatch.execution.lease_renewal import LeaseRenewal
from rensei.dispatch.queue import claims
from tests.database import database_url

PLACES = (
    "RENSEI_VAULT_KEYRING",
    "RENSEI_ANTHROPIC_BASE_URL",
    "RENSEI_E2B_BASE_URL",
    "RENSEI_VERCEL_BASE_URL",
    "RENSEI_MODAL_BASE_URL",
    "PUBLIC_URL",
    "DATA_DIR",
)
_SECONDS_MAX = 90
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.prepared"])


def die(*_args: Any, **_kwargs: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before(function: Callable[..., Any]) -> Callable[..., Any]:
    return die


def die_after(function: Callable[..., Any]) -> Callable[..., Any]:
    def dying(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)
        die()

    return dying


def work_off_the_queue() -> None:
    renewal = LeaseRenewal(owner="dying-worker")
    while (claim := claims.claim_next(owner=renewal.owner)) is not None:
        execute.execute(claim, renewal)


def die_at(point: str, *, plant: Callable[[str], None], work: Callable[[], None] = work_off_the_queue) -> None:
    """Run a worker in a process of its own until it is killed at the point where `plant` puts its death."""
    places = {name: getattr(settings, name) for name in PLACES}
    worker = _CONTEXT.Process(target=_work, args=(plant, point, places, work))
    # The process that is forked from reads its environment once, when it begins.
    with mock.patch.dict(os.environ, DATABASE_URL=database_url()):
        worker.start()
    worker.join(_SECONDS_MAX)
    assert worker.exitcode == -signal.SIGKILL, worker.exitcode


def _work(plant: Callable[[str], None], point: str, places: dict[str, Any], work: Callable[[], None]) -> None:
    for name, value in places.items():
        setattr(settings, name, value)
    plant(point)
    work()
    sys.exit("nothing killed this worker")
