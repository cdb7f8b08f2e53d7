"""
The run table as a queue: claim a run under a lease, keep the lease, hang up chunks, notice dead workers.

A claim raises the run's epoch, the fencing token: whoever holds an older one can no longer change the run.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from django.conf import settings
from django.db import Error, connection
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.jobs import report_row
from rensei.core.transactions import durable
from rensei.dispatch import stored_bytes
from rensei.dispatch.models import Attempt, Run, RunChunk, Turn
from rensei.dispatch.queue import fair_order
from rensei.dispatch.queue.fair_order import Choice

LEASE = timedelta(seconds=30)
# One look passes over as many runs that cannot be read. Each of them is under a lease then, and out of the way.
_UNREADABLE_MAX = 10
# Each run that ends wakes a worker for the next, so these need only be enough to wake all workers.
_WAKE_UPS_MAX = 50


class Stop(StrEnum):
    """Why an execution has to stop early."""

    CANCELLED = "cancelled"
    LEASE_LOST = "lease-lost"
    DEADLINE = "deadline"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A run that this worker holds, and the database's time at which it took it."""

    run: Run
    claimed_at: datetime


def claim_next(*, owner: str) -> Claim | None:
    """Take the queued run whose turn it is. None where no run waits that a worker of the server may start now."""
    for _ in range(_UNREADABLE_MAX):
        choice = None
        try:
            with durable():
                now = database_now()
                choice = fair_order.choose(owner=owner, now=now)
                return None if choice is None else _take_chosen(choice, owner=owner, now=now)
        except Exception as fault:
            if choice is None or (isinstance(fault, Error) and not connection.is_usable()):
                raise
            report_row(choice.run_id, job="claim")
        # It stays out of the way for the time of a lease, so that the runs behind it have their turn.
        with durable():
            now = database_now()
            _claimable(now).filter(id=choice.run_id).update(**_lease(owner, now))
    return None


def is_waiting() -> bool:
    """Tell whether a run waits for a worker of the server, be it that none may start it now. It takes no lock."""
    return bool(Run.objects.filter(state=Run.State.QUEUED).exclude(auth_mode=AuthMode.HOST_SESSION).exists())


def claim_for_host(run_id: str, *, host_id: str, input_tokens: int) -> Attempt | None:
    """
    Take a queued run for its machine, and write down in the same transaction that it is about to call.

    The run waited until its deadline for a machine; from here on it has the time that every call has. None
    where another worker of the machine has it, or it has ended.
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
    """The queued runs that only this machine may execute."""
    queued = Run.objects.filter(state=Run.State.QUEUED, deadline_at__gt=now)
    return queued.filter(auth_mode=AuthMode.HOST_SESSION, host_id=host_id)


def host_owner(host_id: str) -> str:
    """Name a machine as the owner of leases."""
    return f"host:{host_id}"


def renew_lease(run_id: str, *, owner: str, epoch: int) -> datetime | None:
    """
    Keep one lease, and tell until when. None where it was lost.

    It is not renewed for longer than one lease beyond the run's deadline: that is time enough to report the end.
    """
    now = database_now()
    held = Run.objects.filter(id=run_id, state=Run.State.RUNNING, lease_owner=owner, epoch=epoch)
    return now + LEASE if held.filter(deadline_at__gt=now - LEASE).update(lease_until=now + LEASE) else None


def extend_leases(epochs: dict[str, int], *, owner: str) -> set[str]:
    """
    Keep the leases of the runs that are being executed, and name those that are no longer ours.

    As with one lease, none is renewed for longer than a lease beyond the run's deadline.
    """
    if not epochs:
        return set()
    now = database_now()
    held = Run.objects.filter(id__in=epochs, state=Run.State.RUNNING, lease_owner=owner)
    held.filter(deadline_at__gt=now - LEASE).update(lease_until=now + LEASE)
    still = dict(held.values_list("id", "epoch"))
    return {run_id for run_id, epoch in epochs.items() if still.get(run_id) != epoch}


def cancelled_among(run_ids: Collection[str]) -> set[str]:
    """Name the runs whose cancellation somebody asked for."""
    asked = Run.objects.filter(id__in=run_ids, cancel_requested_at__isnull=False)
    return set(asked.values_list("id", flat=True))


def open_attempt(run: Run, *, credential_id: str, credential_version: int, input_tokens: int) -> Attempt | None:
    """
    Write down that a call is about to be made, in a transaction of its own, and renew the lease with it.

    None where the lease was lost: then no call may be made.
    """
    with durable():
        now = database_now()
        held = Run.objects.filter(id=run.id, epoch=run.epoch, state=Run.State.RUNNING, cancel_requested_at=None)
        if not held.update(lease_until=now + LEASE, attempt_count=F("attempt_count") + 1, credential_id=credential_id):
            return None
        run.attempt_count += 1
        return _new_attempt(
            run, credential_id=credential_id, credential_version=credential_version, input_tokens=input_tokens, now=now
        )


def add_chunk(run: Run, *, kind: RunChunk.Kind, data: dict[str, Any]) -> bool:
    """
    Append an event for those who watch the run. False where the lease was lost.

    A run whose events are as long as its answer may become has no more of them: its end brings the whole answer.
    """
    size = stored_bytes.of_event(data)
    with durable():
        held = Run.objects.filter(id=run.id, epoch=run.epoch, state=Run.State.RUNNING)
        has_room = held.filter(event_bytes__lte=stored_bytes.of_answer_at_most(run) - size)
        if not has_room.update(chunk_count=F("chunk_count") + 1, event_bytes=F("event_bytes") + size):
            return held.exists()
        # A machine may send two at once, so the number is the one that this update gave.
        run.refresh_from_db(fields=["chunk_count"])
        RunChunk.objects.create(run=run, seq=run.chunk_count, kind=kind, data=data)
        return True


def why_lost(run: Run) -> Stop:
    """Tell why a run is no longer ours: somebody cancelled it, or another worker has it."""
    cancelled = Run.objects.filter(id=run.id, epoch=run.epoch, cancel_requested_at__isnull=False).exists()
    return Stop.CANCELLED if cancelled else Stop.LEASE_LOST


def requeue_unsent(*, now: datetime) -> int:
    """Put runs back whose worker died before it wrote an attempt: nothing was sent, so nothing is lost."""
    dead = Run.objects.filter(via=Run.Via.QUEUE, state=Run.State.RUNNING, lease_until__lt=now, deadline_at__gt=now)
    unsent = dead.filter(~Exists(Attempt.objects.filter(run=OuterRef("pk"), state=Attempt.State.OPEN)))
    return unsent.update(state=Run.State.QUEUED, lease_owner="", lease_until=None)


def abandoned(*, now: datetime) -> QuerySet[Run]:
    """
    The runs whose worker died with a call under way, and those that nobody holds after their deadline.

    A run of the gateway is abandoned with its process, because its caller has gone with it.
    """
    calling = Exists(Attempt.objects.filter(run=OuterRef("pk"), state=Attempt.State.OPEN))
    over = Q(calling) | Q(deadline_at__lte=now) | Q(via=Run.Via.GATEWAY)
    dead = Q(state=Run.State.RUNNING, lease_until__lt=now) & over
    late = Q(state=Run.State.QUEUED, deadline_at__lte=now)
    return Run.objects.select_related("project").filter(dead | late).order_by("id")


def unanswered(*, now: datetime) -> list[str]:
    """The queued runs whose wake-up was lost, or had to wait: as many as are worth a wake-up."""
    quiet = now - timedelta(seconds=5)
    return list(
        _claimable(now).filter(created_at__lt=quiet).order_by("id").values_list("id", flat=True)[:_WAKE_UPS_MAX]
    )


def _claimable(now: datetime) -> Any:
    return Run.objects.filter(state=Run.State.QUEUED, deadline_at__gt=now).exclude(auth_mode=AuthMode.HOST_SESSION)


def _take_chosen(choice: Choice, *, owner: str, now: datetime) -> Claim | None:
    turn = Turn.objects.filter(org_id=choice.org_id, project_number=choice.project_number)
    if not turn.update(claimed_at=now):
        Turn.objects.create(org_id=choice.org_id, project_number=choice.project_number, claimed_at=now)
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
