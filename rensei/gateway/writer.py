"""
Group commit: the plans that arrive during a transaction share the next one.

A request waits for the commit of its own rows, so every call is on disk before it is made. A hundred concurrent
requests wait for one or two commits, not for a hundred.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import structlog
from django.db import connection

from rensei.core.database_pool import PAUSE_SECONDS, check_connection, open_connection
from rensei.core.errors import RenseiError
from rensei.core.limits import limit
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.admit import AdmissionPlan
from rensei.dispatch.settlement import settle
from rensei.dispatch.settlement.settle import SettlementPlan

PLANS_MAX = limit(
    200,
    "calls",
    what="Gateway calls that are written in one transaction",
    told="the caller: it is written with the next ones",
)

Plan = TypeVar("Plan")
Outcome = RenseiError | Exception | None

logger = structlog.get_logger(__name__)


class GroupWriter(Generic[Plan]):
    """
    A thread that writes plans in groups. A failing plan does not affect the others of its group.

    A statement costs about the same for one row and for ten, so the first plan of a group may wait for others: always,
    for `gather_seconds`, if no request waits for the plans; else for `gather_under_load_seconds`, and only after a
    group of several. A call that is alone does not wait.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[Plan]], Sequence[Outcome]],
        *,
        gather_seconds: float = 0,
        gather_under_load_seconds: float = 0,
    ) -> None:
        self._write = write
        self._gather_seconds = gather_seconds
        self._gather_under_load_seconds = max(gather_seconds, gather_under_load_seconds)
        self._waiting: queue.SimpleQueue[tuple[Plan, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, plan: Plan) -> "asyncio.Future[None]":
        """Queue a plan. The future completes after the commit, or raises the refusal or error."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.put((plan, future))
        return future

    async def close(self) -> None:
        """Write the queued plans, and end the thread."""
        self._waiting.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def _work(self) -> None:
        open_connection()
        closing = False
        size = 0
        while not closing:
            began = time.monotonic()
            taken = [self._waiting.get()]
            if time.monotonic() - began > PAUSE_SECONDS:
                check_connection()
            seconds = self._gather_under_load_seconds if size > 1 else self._gather_seconds
            if seconds and taken[0] is not None:
                time.sleep(seconds)
            while len(taken) < PLANS_MAX and not self._waiting.empty():
                taken.append(self._waiting.get())
            closing = None in taken
            group = [each for each in taken if each is not None]
            size = len(group)
            if not group:
                continue
            outcomes = self._write([plan for plan, _ in group])
            self._loop.call_soon_threadsafe(_deliver, [future for _, future in group], outcomes)
        connection.close()


def write_admissions(plans: Sequence[AdmissionPlan]) -> list[Outcome]:
    """Write admitted calls. Returns for each None, the refusal of its hold, or the error of its write."""
    try:
        refused = admit.write(plans)
    except Exception as fault:  # noqa: BLE001 - it is raised again, in the request that it belongs to
        check_connection()
        return [fault] if len(plans) == 1 else [write_admissions([plan])[0] for plan in plans]
    return [refused.get(plan.id) for plan in plans]


def write_settlements(plans: Sequence[SettlementPlan]) -> list[Outcome]:
    """
    Write the settlements of calls. One that fails permanently is logged, and stays open for the reaper.

    No request waits for it: the caller has its response. A process that dies earlier leaves an open attempt.
    """
    try:
        settle.write_patiently(lambda: plans)
    except Exception as bug:
        check_connection()
        if len(plans) > 1:
            return [write_settlements([plan])[0] for plan in plans]
        logger.exception("settlement_failed", run_id=plans[0].run.id)
        return [bug]
    return [None] * len(plans)


def _deliver(futures: Sequence["asyncio.Future[None]"], outcomes: Sequence[Outcome]) -> None:
    for future, outcome in zip(futures, outcomes, strict=True):
        if future.cancelled():
            continue
        if outcome is None:
            future.set_result(None)
        else:
            future.set_exception(outcome)
            # Mark the exception as retrieved: no request awaits a settlement.
            future.exception()
