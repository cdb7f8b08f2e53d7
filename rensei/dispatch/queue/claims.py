"""
The run table as a queue: claim a run under a lease, renew the lease, append events, detect dead workers.

A claim increments the run's epoch, the fencing token: a worker with an older epoch can no longer change the run.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from django.conf import settings
from django.db import Error, connection
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from integrations.vault import openings
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.jobs import report_row
from rensei.core.transactions import durable
from rensei.dispatch import stored_bytes
from rensei.dispatch.models import Attempt, Run, RunChunk, Turn
from rensei.dispatch.pools import slots
from rensei.dispatch.queue import fair_order
from rensei.dispatch.queue.fair_order import Choice, Queue

LEASE = timedelta(seconds=30)
# The condition, for a periodic job, that any run may have no live worker: it waits, or its lease has expired.
ANY_LOST = """
    EXISTS (SELECT 1 FROM dispatch_run
        WHERE state IN ('QUEUED', 'RUNNING') AND (state = 'QUEUED' OR lease_until < {now}))
"""
# One claim skips at most this many unreadable runs. Each of them is then leased, so the next claim does not meet it.
_UNREADABLE_MAX = 10
# Each run that ends wakes a worker for the next, so this only has to be enough to wake all workers.
_WAKE_UPS_MAX = 50


class Stop(StrEnum):
    """The reason why an execution has to stop early."""

    CANCELLED = "cancelled"
    LEASE_LOST = "lease-lost"
    DEADLINE = "deadline"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A run that this worker has claimed, and the database's time of the claim."""

    run: Run
    claimed_at: datetime


def claim_next(*, owner: str, is_last_thread: bool = False) -> Claim | None:
    """
    Claim the next queued run in fair order. Returns None if no run may be started by a server worker now.

    :param is_last_thread: whether the owner has no other free thread, which goes to an organization that holds none
    """
    held_at_most = 1 if is_last_thread else settings.RENSEI_WORKER_THREADS_PER_ORG
    return _claim_next(Queue.PLAIN, owner=owner, held_at_most=held_at_most)


def claim_next_for_sandbox(*, owner: str, is_last: bool = False, isolates: bool = True) -> Claim | None:
    """
    Claim the next queued run that a sandbox carries out. The order is the same.

    :param is_last: whether the owner has room for one more sandbox only
    :param isolates: whether the owner starts sandboxes on its own machine, or only those of clouds
    """
    held_at_most = 1 if is_last else -(-settings.RENSEI_SANDBOXES_AT_ONCE * 2 // 3)
    return _claim_next(_queue_of(isolates), owner=owner, held_at_most=held_at_most)


def _queue_of(isolates: bool) -> Queue:
    return Queue.SANDBOXES if isolates else Queue.CLOUDS


def _claim_next(queue: Queue, *, owner: str, held_at_most: int) -> Claim | None:
    for _ in range(_UNREADABLE_MAX):
        choice = None
        try:
            with durable():
                now = database_now()
                choice = fair_order.choose(queue, owner=owner, now=now, held_at_most=held_at_most)
                return None if choice is None else _take_chosen(choice, owner=owner, now=now)
        except Exception as fault:
            if choice is None or (isinstance(fault, Error) and not connection.is_usable()):
                raise
            report_row(choice.run_id, job="claim")
        # Lease the unreadable run, so that the runs behind it can be claimed.
        with durable():
            now = database_now()
            _claimable(now).filter(id=choice.run_id).update(**_lease(owner, now))
    return None


def is_waiting() -> bool:
    """Return whether a run is queued for a server worker, even if none may start it now. It takes no lock."""
    return fair_order.is_any_waiting(Queue.PLAIN)


def is_waiting_for_sandbox(*, isolates: bool = True) -> bool:
    """Return the same of the runs that sandboxes carry out: all, or those of clouds only."""
    return fair_order.is_any_waiting(_queue_of(isolates))


def claim_for_host(run_id: str, *, host_id: str, input_tokens: int) -> Attempt | None:
    """
    Claim a queued run for its machine, and write its attempt in the same transaction.

    The deadline so far limited the wait for the machine; the claim sets the deadline of a call. Returns None if
    another worker of the machine has the run, or it has ended.
    """
    with durable():
        now = database_now()
        claim = _take(
            run_id,
            among=waiting_for_host(host_id, now=now),
            owner=host_owner(host_id),
            now=now,
            attempt_count=F("attempt_count") + 1,
            credential_id=host_id,
            deadline_at=now + timedelta(seconds=settings.RENSEI_RUN_DEADLINE_SECONDS),
        )
        if claim is None:
            return None
        return _new_attempt(claim.run, credential_id=host_id, credential_version=1, input_tokens=input_tokens, now=now)


def waiting_for_host(host_id: str, *, now: datetime) -> Any:
    """Return the queued runs that only this machine may execute."""
    queued = Run.objects.filter(state=Run.State.QUEUED, deadline_at__gt=now)
    return queued.filter(auth_mode=AuthMode.HOST_SESSION, host_id=host_id)


def host_owner(host_id: str) -> str:
    """Return the lease owner name of a machine."""
    return f"host:{host_id}"


def renew_lease(run_id: str, *, owner: str, epoch: int) -> datetime | None:
    """
    Renew one lease and return its new end, or None if the lease is lost.

    Renewal stops one lease duration after the run's deadline, which leaves enough time to report the end.
    """
    now = database_now()
    held = Run.objects.filter(id=run_id, state=Run.State.RUNNING, lease_owner=owner, epoch=epoch)
    return now + LEASE if held.filter(deadline_at__gt=now - LEASE).update(lease_until=now + LEASE) else None


def extend_leases(epochs: dict[str, int], *, owner: str) -> set[str]:
    """
    Renew the leases of the executing runs, and return the runs whose lease this worker has lost.

    As in `renew_lease`, renewal stops one lease duration after the run's deadline.
    """
    if not epochs:
        return set()
    now = database_now()
    held = Run.objects.filter(id__in=epochs, state=Run.State.RUNNING, lease_owner=owner)
    held.filter(deadline_at__gt=now - LEASE).update(lease_until=now + LEASE)
    still = dict(held.values_list("id", "epoch"))
    return {run_id for run_id, epoch in epochs.items() if still.get(run_id) != epoch}


def cancelled_among(run_ids: Collection[str]) -> set[str]:
    """Return the runs whose cancellation was requested."""
    asked = Run.objects.filter(id__in=run_ids, cancel_requested_at__isnull=False)
    return set(asked.values_list("id", flat=True))


def open_attempt(run: Run, *, credential_id: str, credential_version: int, input_tokens: int) -> Attempt | None:
    """
    Write the attempt of the next call in a separate transaction, and renew the lease with it.

    It also records that the key was opened, so that no key signs a call before that is known.

    Returns None if the lease is lost: then no call may be made.
    """
    with durable():
        now = database_now()
        held = Run.objects.filter(id=run.id, epoch=run.epoch, state=Run.State.RUNNING, cancel_requested_at=None)
        if not held.update(lease_until=now + LEASE, attempt_count=F("attempt_count") + 1, credential_id=credential_id):
            return None
        openings.write_of(run.id)
        run.attempt_count += 1
        return _new_attempt(
            run, credential_id=credential_id, credential_version=credential_version, input_tokens=input_tokens, now=now
        )


def add_chunk(run: Run, *, kind: RunChunk.Kind, data: dict[str, Any]) -> bool:
    """
    Append an event to the run's events. Returns False if the lease is lost.

    Events beyond the maximum size of the run's output are not stored: the end of the run holds the whole output.
    """
    size = stored_bytes.of_event(data)
    with durable():
        held = Run.objects.filter(id=run.id, epoch=run.epoch, state=Run.State.RUNNING)
        has_room = held.filter(event_bytes__lte=stored_bytes.of_events_at_most(run) - size)
        if not has_room.update(chunk_count=F("chunk_count") + 1, event_bytes=F("event_bytes") + size):
            return held.exists()
        # A machine may send two events at once, so the number is read back after the update.
        run.refresh_from_db(fields=["chunk_count"])
        RunChunk.objects.create(run=run, seq=run.chunk_count, kind=kind, data=data)
        return True


def why_lost(run: Run) -> Stop:
    """Return why this worker lost a run: it was cancelled, or another worker has it."""
    cancelled = Run.objects.filter(id=run.id, epoch=run.epoch, cancel_requested_at__isnull=False).exists()
    return Stop.CANCELLED if cancelled else Stop.LEASE_LOST


def requeue_unsent(*, now: datetime) -> int:
    """
    Requeue the runs whose worker died before it wrote an attempt: nothing was sent, so nothing is lost.

    The attempts of a run in a sandbox are written and settled by the gateway, so it may have been answered already.
    """
    dead = Run.objects.filter(via=Run.Via.QUEUE, state=Run.State.RUNNING, lease_until__lt=now, deadline_at__gt=now)
    unsent = dead.filter(~Exists(Attempt.objects.filter(run=OuterRef("pk"), state=Attempt.State.OPEN)))
    unsent = unsent.exclude(in_sandbox=True, attempt_count__gt=0)
    return unsent.update(state=Run.State.QUEUED, lease_owner="", lease_until=None)


def abandoned(*, now: datetime) -> QuerySet[Run]:
    """
    Return the runs whose worker died during a call, and those that are past their deadline without a live lease.

    A gateway run is abandoned when its process dies, because the connection to its caller is lost too.
    """
    calling = Exists(Attempt.objects.filter(run=OuterRef("pk"), state=Attempt.State.OPEN))
    has_called = Q(calling) | Q(in_sandbox=True, attempt_count__gt=0)
    over = has_called | Q(deadline_at__lte=now) | Q(via=Run.Via.GATEWAY)
    dead = Q(state=Run.State.RUNNING, lease_until__lt=now) & over
    late = Q(state=Run.State.QUEUED, deadline_at__lte=now)
    return Run.objects.select_related("project").filter(dead | late).order_by("id")


def waiting_too_long(*, now: datetime, limit: int) -> list[Run]:
    """
    Return the queued runs that have waited too long for a slot of their pool, which is full now.

    Not those that were claimed before: the sandbox of such a run may hold the slot for which it waits.
    """
    full: dict[str, list[str]] = {}
    for org_id, pool in slots.full(now=now):
        full.setdefault(org_id, []).append(pool)
    found: list[Run] = []
    for org_id, names in full.items():
        waiting = Run.objects.live().filter(
            org=org_id, in_sandbox=True, pool__in=names, state=Run.State.QUEUED, epoch=0
        )
        late = waiting.filter(created_at__lte=now - timedelta(seconds=settings.RENSEI_POOL_WAIT_SECONDS))
        found += late.select_related("project").order_by("id")[: limit - len(found)]
    return found


def unanswered(*, now: datetime) -> list[str]:
    """Return queued runs whose wake-up was lost or could not start them, at most `_WAKE_UPS_MAX`."""
    quiet = now - timedelta(seconds=5)
    quiet_ones = _claimable(now).filter(in_sandbox=False, created_at__lt=quiet).order_by("id")
    return list(quiet_ones.values_list("id", flat=True)[:_WAKE_UPS_MAX])


def _claimable(now: datetime) -> Any:
    return Run.objects.filter(state=Run.State.QUEUED, deadline_at__gt=now).exclude(auth_mode=AuthMode.HOST_SESSION)


def _take_chosen(choice: Choice, *, owner: str, now: datetime) -> Claim | None:
    of = {"org_id": choice.org_id, "project_number": choice.project_number, "in_sandbox": choice.in_sandbox}
    if not Turn.objects.filter(**of).update(claimed_at=now):
        Turn.objects.create(**of, claimed_at=now)
    return _take(choice.run_id, among=_claimable(now), owner=owner, now=now)


def _take(run_id: str, *, among: Any, owner: str, now: datetime, **more: Any) -> Claim | None:
    taken = among.filter(id=run_id).update(**_lease(owner, now), **more)
    return _claimed(run_id, now) if taken else None


def _lease(owner: str, now: datetime) -> dict[str, Any]:
    return {
        "state": Run.State.RUNNING,
        "lease_owner": owner,
        "lease_until": now + LEASE,
        "epoch": F("epoch") + 1,
        "started_at": now,
        "chunk_count": F("chunk_count") + 1,
    }


def _claimed(run_id: str, now: datetime) -> Claim:
    run = Run.objects.select_related("org", "input", "project").get(id=run_id)
    RunChunk.objects.create(run=run, seq=run.chunk_count, kind=RunChunk.Kind.STATE, data={"state": run.state})
    return Claim(run=run, claimed_at=now)


def _new_attempt(run: Run, *, credential_id: str, credential_version: int, input_tokens: int, now: datetime) -> Attempt:
    return Attempt.objects.create(
        run=run,
        number=run.attempt_count,
        epoch=run.epoch,
        credential_id=credential_id,
        credential_version=credential_version,
        input_tokens_estimate=input_tokens,
        started_at=now,
    )
