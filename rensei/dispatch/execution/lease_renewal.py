"""
Lease renewal in a worker process: renew the leases of executing runs, and stop runs that are cancelled or lost.

One thread for any number of runs. It detects a cancellation within 0.5 s and a lost lease within 5 s.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog
from django.db import close_old_connections

from rensei.core.database_pool import check_connection, open_connection
from rensei.core.errors import DATABASE_FAULTS
from rensei.dispatch.models import Run
from rensei.dispatch.queue import claims
from rensei.dispatch.queue.claims import Stop

LOOK_SECONDS = 0.5
HEARTBEAT_SECONDS = 5.0

logger = structlog.get_logger(__name__)


class LiveRun:
    """The state of an executing run, shared between its executor and the lease renewal."""

    def __init__(self, run: Run, *, seconds_left: float) -> None:
        self.run_id = run.id
        self.epoch = run.epoch
        # The gateway makes the calls of runs that a worker holds, and renews its lease meanwhile: a worker that dies
        # must not release what a call still costs.
        self.owner = run.lease_owner
        self.deadline = time.monotonic() + seconds_left
        self._stop: Stop | None = None

    @property
    def stop(self) -> Stop | None:
        if self._stop is None and time.monotonic() >= self.deadline:
            self._stop = Stop.DEADLINE
        return self._stop

    def order(self, reason: Stop) -> None:
        """Signal the executor to stop. The first reason is kept."""
        self._stop = self._stop or reason

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


class LeaseRenewal:
    """
    Renews the leases and signals the cancellations of the runs of one process.

    `is_kept`: the connection is opened at once and kept without runs too, since requests share the pool.
    """

    def __init__(self, *, owner: str, is_kept: bool = False) -> None:
        self.owner = owner
        self._is_kept = is_kept
        self._live: set[LiveRun] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        # Set while a run executes, and from the close on. The thread sleeps while it is not.
        self._needed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease-renewal", daemon=True)
        self._thread.start()

    @contextmanager
    def watching(self, live: LiveRun) -> Iterator[None]:
        with self._lock:
            self._live.add(live)
            if not self._needed.is_set():
                self._needed.set()
        try:
            yield
        finally:
            with self._lock:
                self._live.discard(live)
                if not self._live and not self._closed.is_set():
                    self._needed.clear()

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            self._needed.set()
        self._thread.join()

    def _keep(self) -> None:
        if self._is_kept:
            open_connection()
        renewed = time.monotonic()
        while self._needed.wait() and not self._closed.wait(LOOK_SECONDS):
            with self._lock:
                live = list(self._live)
            if not live:
                self._release()
                continue
            try:
                self._signal_cancellations(live)
                if time.monotonic() - renewed >= HEARTBEAT_SECONDS:
                    self._renew(live)
                    renewed = time.monotonic()
            except DATABASE_FAULTS as fault:
                # The leases outlast a restart of the database, so waiting for it is safe.
                logger.warning("lease_renewal_database_down", fault=type(fault).__name__)
                check_connection()
            except Exception:
                # A defect in this code. If this thread ended, all runs of the process would lose their leases.
                logger.exception("lease_renewal_failed")
                check_connection()
            # The connection is kept while a run is under way. This thread must not wait for one behind requests or
            # settlements that hold all of the pool: the leases of all runs would expire meanwhile.
            if not self._needed.is_set():
                self._release()
        close_old_connections()

    def _release(self) -> None:
        if not self._is_kept:
            close_old_connections()

    def _signal_cancellations(self, live: Sequence[LiveRun]) -> None:
        cancelled = claims.cancelled_among({run.run_id for run in live})
        for run in live:
            if run.run_id in cancelled:
                run.order(Stop.CANCELLED)

    def _renew(self, live: Sequence[LiveRun]) -> None:
        for owner in {run.owner for run in live}:
            held = [run for run in live if run.owner == owner]
            # After a pause of the whole process one run may be listed twice; only the later claim can be valid.
            epochs = {run.run_id: run.epoch for run in sorted(held, key=lambda run: run.epoch)}
            lost = claims.extend_leases(epochs, owner=owner)
            for run in held:
                if run.run_id in lost or run.epoch < epochs[run.run_id]:
                    run.order(Stop.LEASE_LOST)
