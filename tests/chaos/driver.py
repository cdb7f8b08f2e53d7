"""Carry a plan out: dispatch its runs, disturb the processes in between, and wait until every run has ended."""

import socket
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connection

from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.dispatch import services
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import reaper
from rensei.dispatch.models import Run
from rensei.dispatch.queue import claims, wake_up
from rensei.orgs.access import Access
from tests.chaos import world
from tests.chaos.plan import SKEW_HOURS, SKEWED, WORKERS, Event, Kind, Plan, PlannedRun
from tests.chaos.stack import Stack

# So many runs wait at the most, so that the kills fall evenly on all of them.
QUEUE_MAX = 20
STUCK_SECONDS = 240.0
# Longer than a lease and the two looks that a reaper may take.
FREEZE_SECONDS = claims.LEASE.total_seconds() + 25
FREEZE_SECONDS_IN_A_HURRY = 2.0
EXPECTED_REFUSALS = {"SHARED_QUOTA_EXCEEDED"}
KILLED = -9
# One that is asked to stop before it has begun just ends.
STOPPED = {0, -15}

Answer = TypeVar("Answer")


class Driver:
    """
    Carries one plan out. `done` counts what was done, `refused` the refusals, `findings` what should not be.

    In a hurry, the leases of workers that were killed or frozen are put into the past instead of being waited for,
    and this process reaps as well.
    """

    def __init__(self, *, plan: Plan, stack: Stack, owners: dict[str, Access], hurry: bool) -> None:
        self.plan = plan
        self.stack = stack
        self.hurry = hurry
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.findings: list[str] = []
        self._owners = owners
        self._runs: dict[int, Run] = {}
        self._gone: set[int] = set()
        self._frozen: dict[int, float] = {}

    def carry_out(self) -> None:
        """Do everything that was planned, wait for the end of every run, and stop the workers."""
        self.stack.start_workers([SKEW_HOURS if place == SKEWED else 0 for place in range(WORKERS)])
        events = list(self.plan.events)
        for planned in self.plan.runs:
            self._wait_for_room()
            self._dispatch(planned)
            while events and events[0].after <= planned.number:
                self._disturb(events.pop(0))
            self._thaw(due=time.monotonic())
        self._wait_for_the_end()
        for code in self.stack.stop_workers():
            if code not in STOPPED:
                self.findings.append(f"a worker that was asked to stop ended with {code}")

    def _dispatch(self, planned: PlannedRun) -> None:
        access = self._owners[planned.org]
        request = DispatchRequest(
            profile_id=world.profile_of(planned.mode), messages=messages_from(text=planned.prompt, messages=None)
        )
        send = partial(admit.dispatch, access, request, idempotency_key=f"run-{planned.number}")
        try:
            run = self._insist(send)
        except RenseiError as refusal:
            self.refused[refusal.code] += 1
            if refusal.code not in EXPECTED_REFUSALS:
                self.findings.append(f"run {planned.number} was refused: {refusal.code}")
            return
        self._runs[planned.number] = run
        self.done["runs"] += 1
        if planned.doubled:
            self.done["doubled-dispatch"] += 1
            if self._insist(send).id != run.id:
                self.findings.append(f"two runs for one Idempotency-Key: {run.id}")
        if planned.cancels is not None and planned.cancels in self._runs:
            self._cancel(access=self._owners[self.plan.runs[planned.cancels].org], run=self._runs[planned.cancels])
        if planned.rings_for is not None and planned.rings_for in self._runs:
            self.done["doubled-bell"] += 1
            wake_up.notify_workers(self._runs[planned.rings_for].id)

    def _cancel(self, *, access: Access, run: Run) -> None:
        try:
            self._insist(lambda: services.cancel_run(access, Run.objects.get(id=run.id)))
        except services.RunNotCancellable:
            return
        self.done["cancel"] += 1

    def _disturb(self, event: Event) -> None:
        time.sleep(event.pause_seconds)
        place, skew_hours = self._place_for(event)
        pid = self.stack.workers[place]
        match event.kind:
            case Kind.KILL:
                code = self.stack.kill(place, skew_hours=skew_hours)
                if code != KILLED:
                    self.findings.append(f"a worker ended by itself with {code}")
                self._gone.add(pid)
            case Kind.TERMINATE:
                self.stack.terminate(place, skew_hours=skew_hours)
            case Kind.FREEZE:
                self.stack.freeze(pid)
                self._frozen[pid] = time.monotonic() + (FREEZE_SECONDS_IN_A_HURRY if self.hurry else FREEZE_SECONDS)
                if self.hurry:
                    self._reap({pid})
            case Kind.RESTART_DATABASE:
                assert self.stack.database is not None
                self.stack.database.crash()
                self.stack.database.start()
            case Kind.RESTART_BROKER:
                self.stack.restart_broker()
        self.done[event.kind] += 1

    def _place_for(self, event: Event) -> tuple[int, int]:
        """Spare the frozen, so that they come back late: take the next place instead. The last of all is thawed."""
        for place in [(event.place + step) % WORKERS for step in range(WORKERS)]:
            if self.stack.workers[place] not in self._frozen:
                skew_hours = SKEW_HOURS if place == SKEWED else 0
                return place, event.skew_hours if place == event.place else skew_hours
        self._thaw_one(self.stack.workers[event.place])
        return event.place, event.skew_hours

    def _thaw(self, *, due: float) -> None:
        for pid in [pid for pid, until in self._frozen.items() if until <= due]:
            self._thaw_one(pid)

    def _thaw_one(self, pid: int) -> None:
        del self._frozen[pid]
        self.stack.thaw(pid)

    def _wait_for_room(self) -> None:
        def is_full() -> bool:
            return Run.objects.filter(state=Run.State.QUEUED).count() >= QUEUE_MAX

        self._wait_while(is_full, "the queue does not get shorter")

    def _wait_for_the_end(self) -> None:
        def is_unfinished() -> bool:
            if self.hurry and not self._frozen:
                self._reap(self._gone)
            return bool(self._frozen) or Run.objects.exclude(state__in=Run.ENDED).exists()

        self._wait_while(is_unfinished, "runs do not end")

    def _wait_while(self, condition: Callable[[], bool], complaint: str) -> None:
        until = time.monotonic() + STUCK_SECONDS
        while self._insist(condition):
            self._thaw(due=time.monotonic())
            time.sleep(0.05)
            if time.monotonic() > until:
                raise TimeoutError(complaint)

    def _reap(self, pids: set[int]) -> None:
        """Let the leases of these workers be over, and look after their runs."""
        names = [f"{socket.gethostname()[:40]}:{pid}{suffix}" for pid in pids for suffix in ("", ":celery")]
        held = Run.objects.filter(state=Run.State.RUNNING, lease_owner__in=names)
        self._insist(lambda: held.update(lease_until=database_now() - claims.LEASE))
        self._insist(reaper.reap)

    def _insist(self, do: Callable[[], Answer]) -> Answer:
        """
        Do something as a client does who means it: again, while the database is away.

        A frozen worker may hold the lock that this waits for, so it is thawed here too when its time has come.
        """
        until = time.monotonic() + STUCK_SECONDS
        while True:
            try:
                return do()
            except (OperationalError, InterfaceError):
                connection.close()
                if time.monotonic() > until:
                    raise
                self._thaw(due=time.monotonic())
                time.sleep(0.1)
