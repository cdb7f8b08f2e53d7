"""
The worker process: it claims queued runs, executes them in threads, and runs the periodic jobs.

With a Celery broker, Celery's workers execute the runs, and this process runs only the jobs. While the broker is
unavailable, those workers get no wake-ups, and this process executes the runs itself.
"""

import os
import socket
import threading
import time
from datetime import timedelta

import structlog
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.models.functions import Now

from billing.integrity import anchors, seals, witnesses
from integrations.keys import fingerprints, reminders, rotations
from integrations.keys.removed_tokens import drop_removed_tokens
from integrations.providers.base import ADAPTERS
from integrations.vault import issuer, openings_kept, rotation
from profiles import stored_bytes as profiles_stored
from rensei import sealing
from rensei.accounts import sessions
from rensei.core import jobs, rate_store, unknown_names
from rensei.core.clock import database_now
from rensei.core.jobs import Job, Schedule
from rensei.core.models import WorkerHeartbeat
from rensei.core.rates import rates
from rensei.core.unknown import note_unknown
from rensei.dispatch import idempotency, org_deletion, retention, withheld
from rensei.dispatch import stored_bytes as runs_stored
from rensei.dispatch.execution import reaper
from rensei.dispatch.execution.execute import execute
from rensei.dispatch.execution.lease_renewal import LeaseRenewal
from rensei.dispatch.execution.sandboxes import Sandboxes
from rensei.dispatch.queue import claims, wake_up
from rensei.dispatch.queue.watch import QueueWatch
from rensei.dispatch.settlement import audit
from rensei.orgs import entering, storage
from rensei.workflows import execution as workflows
from rensei.workflows import stored_bytes as workflows_stored


def count_stored_bytes() -> dict[str, tuple[int, int]]:
    """Correct the counts of stored bytes if they differ from what is stored, and return the differences."""
    return storage.reconcile([runs_stored.by_org, workflows_stored.by_org, profiles_stored.by_org])


def finish_key_rotations() -> None:
    """Note which outer keys are not needed any more, and delete older data keys and keys of fingerprints."""
    rotation.note_emptied()
    fingerprints.delete_unneeded_keys()
    sealing.finish_rotations()


# A killed worker holds its job until the lease ends, and these jobs must not wait for long.
SHORT = timedelta(seconds=30)
JOBS = [
    Job(name="reap", every=timedelta(seconds=10), run=reaper.reap, lease=SHORT, has_work=claims.ANY_LOST),
    # The process that ends a run or starts a workflow advances it. This finds those whose process died before it did.
    Job(
        name="advance-workflows",
        every=timedelta(seconds=5),
        run=workflows.advance_due,
        lease=workflows.LEASE,
        has_work=workflows.ANY_DUE,
    ),
    Job(name="delete-orgs", every=timedelta(seconds=10), run=org_deletion.go_on, has_work=org_deletion.ANY_DUE),
    Job(name="seal-ledger", every=timedelta(seconds=5), run=seals.seal, lease=SHORT, has_work=seals.ANY_WAITING),
    Job(name=anchors.JOB, every=timedelta(minutes=1), run=anchors.anchor, lease=SHORT),
    Job(name=entering.JOB, every=timedelta(minutes=1), run=entering.end_due, has_work=entering.ANY_OVER),
    Job(name="forget-idempotency-keys", every=timedelta(hours=1), run=idempotency.forget_old),
    Job(name="forget-rate-counts", every=timedelta(hours=1), run=lambda: rate_store.forget_ended(now=time.time())),
    Job(name="forget-sessions", every=timedelta(hours=1), run=sessions.forget_ended),
    Job(name="rotate-issuer-key", every=timedelta(hours=1), run=issuer.keep_fresh),
    Job(name="remind-of-old-keys", every=timedelta(hours=1), run=reminders.remind),
    Job(name="drop-withheld-inputs", every=timedelta(minutes=10), run=withheld.drop_of_ended_runs),
    Job(name="drop-old-images", every=timedelta(hours=1), run=retention.drop_old_images),
]
# These take long, and have a thread of their own so that none of the jobs above waits for them.
SLOW_JOBS = [
    Job(name="count-stored-bytes", every=timedelta(hours=6), run=count_stored_bytes, lease=timedelta(hours=2)),
    Job(name="tell-witnesses", every=timedelta(minutes=1), run=witnesses.tell),
    Job(
        name="rotate-keys",
        every=timedelta(seconds=10),
        run=rotations.carry_on,
        lease=timedelta(minutes=2),
        has_work=rotations.ANY_UNDER_WAY,
    ),
    Job(name="finish-key-rotations", every=timedelta(hours=1), run=finish_key_rotations, lease=timedelta(hours=1)),
    Job(name="count-key-openings", every=timedelta(hours=1), run=openings_kept.count_and_forget),
    Job(name="look-at-deleted-orgs", every=timedelta(hours=1), run=org_deletion.look_again),
    Job(name="audit-ledger", every=timedelta(hours=24), run=audit.audit_nightly, lease=timedelta(hours=2)),
]
# How often the queue is checked while runs wait that may not start yet, and while none waits.
LOOK_SECONDS = 0.1
IDLE_LOOK_SECONDS = 5.0
# Where the last queued run was found without a notification, as behind a pooler that drops them.
UNNOTIFIED_LOOK_SECONDS = 1.0
FAILED_LOOK_SECONDS = 1.0
BROKER_LOOK_SECONDS = 1.0
# The least time between two rounds of the jobs of a busy worker. An idle one waits until the next job is due.
JOBS_EVERY_SECONDS = 1.0
JOBS_TOGETHER_SECONDS = 0.1
SLOW_JOBS_AFTER_SECONDS = 30.0
HEARTBEAT_SECONDS = 5.0
DRAIN_SECONDS = 30.0

logger = structlog.get_logger(__name__)


class Worker:
    """One worker process. `run` returns after `stop`, once the runs under way have ended or had their time."""

    def __init__(self) -> None:
        self.name = f"{socket.gethostname()[:40]}:{os.getpid()}"
        self._stopped = threading.Event()
        self._slots = threading.Semaphore(settings.RENSEI_WORKER_THREADS)
        self._threads: set[threading.Thread] = set()
        self._watch = QueueWatch()
        self._sandboxes = Sandboxes(owner=f"{self.name}:sandboxes", on_end=self._note_ended)
        self._found_none = False
        self._was_notified = self._notifications_arrive = True
        # Set when a run has ended, whose counts are due for exchange, and by `stop`.
        self._jobs_wanted = threading.Event()

    def stop(self) -> None:
        self._stopped.set()
        self._jobs_wanted.set()
        self._watch.wake()

    def run(self) -> None:
        """Work until `stop` is called. It waits for an unavailable database."""
        # Before the first heartbeat, which tells readiness checks and people that a queued run will start at once.
        for adapter in ADAPTERS.values():
            adapter.warm_up()
        self._sandboxes.open()
        renewal = LeaseRenewal(owner=self.name)
        jobs_thread = threading.Thread(target=self._run_jobs, name="jobs")
        jobs_thread.start()
        # It only reads, so stopping the worker need not wait for it.
        threading.Thread(target=self._do_slow_jobs, name="slow-jobs", daemon=True).start()
        logger.info("worker_started", worker=self.name, threads=settings.RENSEI_WORKER_THREADS)
        while not self._stopped.is_set():
            self._look(renewal)
        self._drain()
        jobs_thread.join()
        renewal.close()
        self._watch.close()
        connection.close()

    def _look(self, renewal: LeaseRenewal) -> None:
        """Start the next run, or wait a moment. A bug must not end the other runs."""
        try:
            if settings.CELERY_BROKER_URL and not wake_up.is_broker_away():
                self._watch.pause()
                if not self._sandboxes.start_next():
                    self._stopped.wait(BROKER_LOOK_SECONDS)
            else:
                self._look_into_queue(renewal)
        except DatabaseError as fault:
            logger.warning("claim_failed", fault=type(fault).__name__)
            connection.close()
            self._stopped.wait(LOOK_SECONDS)
        except Exception:
            logger.exception("look_failed")
            self._stopped.wait(FAILED_LOOK_SECONDS)

    def _look_into_queue(self, renewal: LeaseRenewal) -> None:
        """Start the next run, or wait until there may be one. An idle worker reads the queue first: a claim locks."""
        self._watch.begin()
        if self._found_none:
            if not claims.is_waiting() and not self._sandboxes.can_start():
                look_seconds = IDLE_LOOK_SECONDS if self._notifications_arrive else UNNOTIFIED_LOOK_SECONDS
                self._was_notified = self._watch.wait(look_seconds)
                return
            self._notifications_arrive = self._was_notified
        in_sandbox = self._sandboxes.start_next()
        self._found_none = (
            not self._start_next(renewal, wait_seconds=0 if in_sandbox else LOOK_SECONDS) and not in_sandbox
        )
        if self._found_none:
            self._watch.wait(LOOK_SECONDS)

    def _start_next(self, renewal: LeaseRenewal, *, wait_seconds: float) -> bool:
        """
        Claim a run and execute it in a thread. False if there is none to claim.

        :raises DatabaseError: if the database does not answer
        """
        if not self._slots.acquire(timeout=wait_seconds):
            return False
        started = False
        try:
            # The last free thread is for an organization that holds none, so that a few of them never hold all.
            is_last = len(self._threads) + 1 >= settings.RENSEI_WORKER_THREADS
            claim = claims.claim_next(owner=self.name, is_last_thread=is_last)
            if claim is not None:
                self._start(claim, renewal)
                started = True
        finally:
            if not started:
                self._slots.release()
        return started

    def _start(self, claim: claims.Claim, renewal: LeaseRenewal) -> None:
        """Execute a run in a thread. If no thread can start, the run is queued again after its lease ends."""
        thread = threading.Thread(target=self._execute, args=(claim, renewal), name=f"run-{claim.run.id}", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            self._threads.discard(thread)
            raise

    def _execute(self, claim: claims.Claim, renewal: LeaseRenewal) -> None:
        try:
            execute(claim, renewal)
        except Exception:
            # A bug. The run keeps its lease until it expires; then the reaper recovers the run.
            logger.exception("execution_failed", run_id=claim.run.id)
        finally:
            self._threads.discard(threading.current_thread())
            self._slots.release()
            self._note_ended()

    def _note_ended(self) -> None:
        """Look into the queue now: there is room for another run."""
        self._watch.wake()
        self._jobs_wanted.set()

    def _drain(self) -> None:
        until = time.monotonic() + DRAIN_SECONDS
        for thread in list(self._threads):
            thread.join(timeout=max(0.0, until - time.monotonic()))
        self._sandboxes.close(seconds=max(0.0, until - time.monotonic()))
        if self._threads:
            logger.warning("worker_left_runs", count=len(self._threads))

    def _run_jobs(self) -> None:
        schedule = Schedule(JOBS)
        beaten = -HEARTBEAT_SECONDS
        while not self._stopped.is_set():
            pause = JOBS_EVERY_SECONDS
            try:
                if time.monotonic() - beaten >= HEARTBEAT_SECONDS:
                    self._beat()
                    beaten = time.monotonic()
                    unknown_names.store()
                    drop_removed_tokens()
                rates.exchange()
                run_due_jobs(schedule)
                pause = min(schedule.seconds_left, beaten + HEARTBEAT_SECONDS - time.monotonic())
            except DatabaseError as fault:
                logger.warning("jobs_failed", fault=type(fault).__name__)
                connection.close()
            except Exception:
                logger.exception("jobs_failed")
            # The connection stays open: opening one for each round costs more than all its queries.
            self._wait_for_jobs(pause)
        unknown_names.store()
        rates.exchange()
        WorkerHeartbeat.objects.filter(worker=self.name).delete()
        connection.close()

    def _beat(self) -> None:
        refusal, of_claude_code = self._sandboxes.refusal, self._sandboxes.claude_code_refusal
        offer = {
            "offers_sandboxes": not refusal,
            "sandbox_refusal": refusal,
            "offers_claude_code": not of_claude_code,
            "claude_code_refusal": of_claude_code,
        }
        if not WorkerHeartbeat.objects.filter(worker=self.name).update(seen_at=Now(), **offer):
            WorkerHeartbeat.objects.create(worker=self.name, seen_at=database_now(), **offer)

    def _wait_for_jobs(self, seconds: float) -> None:
        """Wait until jobs are due, together with those due right after them, or until a run has ended."""
        if self._jobs_wanted.wait(max(0.0, seconds) + JOBS_TOGETHER_SECONDS):
            self._jobs_wanted.clear()
            # A busy worker ends many runs in a second.
            self._stopped.wait(JOBS_EVERY_SECONDS)

    def _do_slow_jobs(self) -> None:
        schedule = Schedule(SLOW_JOBS)
        pause = SLOW_JOBS_AFTER_SECONDS
        while not self._stopped.wait(pause):
            pause = SLOW_JOBS_AFTER_SECONDS
            try:
                run_due_jobs(schedule)
                pause = max(JOBS_EVERY_SECONDS, schedule.seconds_left)
            except DatabaseError as fault:
                logger.warning("slow_jobs_failed", fault=type(fault).__name__)
            except Exception:
                logger.exception("slow_jobs_failed")
            connection.close()


def run_due_jobs(schedule: Schedule) -> None:
    """Run those of the periodic jobs that are due. One that fails is logged, and due again at its next time."""
    for job in schedule.due():
        leased_until = jobs.take(job)
        if leased_until is None:
            schedule.not_taken(job)
            continue
        try:
            job.run()
        except Exception:
            logger.exception("job_failed", job=job.name)
            note_unknown("failed_job", job.name)
        jobs.put_back(job, leased_until=leased_until)
        schedule.done(job)
