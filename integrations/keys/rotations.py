"""
Rotations in the background: each is a row, carried out in batches by whichever worker or command claims it.

The rows of the database are the work that is left, so a process that is killed loses nothing but its batch. Another one
takes that up when the claim has ended. There is one rotation at a time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import F, Q

from integrations.keys import fingerprints
from integrations.models import Integration, Rotation
from integrations.vault import kek_providers, rotation
from integrations.vault.errors import CredentialUnreadable, KeyServiceSilent, VaultFault
from integrations.vault.key_services.circuit import OPEN_SECONDS
from integrations.vault.rotation import Batch
from rensei.audit.record import record_operator, record_system
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError, Said
from rensei.core.limits import limit
from rensei.core.transactions import durable, leave_database, unique
from rensei.orgs.models import User

# The condition, for a periodic job, that there is work.
ANY_UNDER_WAY = "EXISTS (SELECT 1 FROM integrations_rotation WHERE state = 'running')"
# A worker carries a rotation on for so long, and then does other work of its thread.
TURN_SECONDS = 60
LEASE = timedelta(seconds=15)
# A batch makes 75 calls to a key service, one after another, and a slow one takes seconds.
LEASE_WITH_CALLS = timedelta(minutes=2)
# After so many that fail, the cause is not theirs.
FAILED_MAX = limit(
    500,
    "integrations",
    what="Rotation of many keys: failures, after which it ends",
    told="operators: the rotation is shown as failed",
)
LOOK_SECONDS = 1.0
REASON_LENGTH = 200


class RotationUnderWay(RenseiError):
    """There is one rotation at a time."""

    code = "IN_USE"
    status = 409
    title = "A rotation is under way"
    message = Said("A rotation is under way: {kind}.", "Wait for its end, or stop it: it goes on where it was.")


@dataclass(frozen=True, kw_only=True)
class Work:
    """
    A kind of rotation. `batch` does the next part: of what comes after a position, without those that have failed.

    The position is where the one before ended that failed, so each comes to rows that it did not. `count` returns how
    much there is to do. `begin` and `end` are carried out once; `renew` at the start of each turn.
    """

    count: Callable[[str], int]
    batch: Callable[[str, list[str]], Batch]
    begin: Callable[[], object] = field(default=lambda: None)
    renew: Callable[[], object] = field(default=lambda: None)
    end: Callable[[], object] = field(default=lambda: None)


WORK = {
    Rotation.Kind.REWRAP: Work(
        count=lambda _: rotation.outdated().count(),
        batch=lambda after, failed: rotation.rewrap_batch(after, failed),
        renew=rotation.renew_check,
        end=rotation.note_emptied,
    ),
    Rotation.Kind.VERIFY: Work(count=rotation.count_after, batch=lambda after, _: rotation.verify_batch(after)),
    Rotation.Kind.FINGERPRINTS: Work(
        count=lambda _: fingerprints.outdated().count(),
        batch=lambda after, failed: fingerprints.recompute_batch(after, failed),
        begin=fingerprints.add_key,
        end=fingerprints.delete_unneeded_keys,
    ),
}


def live() -> Rotation | None:
    """Return the rotation that is under way."""
    return Rotation.objects.filter(state=Rotation.State.RUNNING).first()


def left_of(kind: Rotation.Kind) -> int:
    """
    Count what a rotation of a kind would have to do now.

    :raises VaultFault: if the current outer key is not available
    """
    return WORK[kind].count("")


def count_fingerprints() -> int:
    """Count the fingerprints, which are all made anew by a new key."""
    return Integration.objects.count()


def start(kind: Rotation.Kind, *, actor: User | str, resume: bool = False) -> Rotation:
    """
    Start a rotation, which a worker carries out.

    :param actor: the operator, or the name of the command
    :param resume: begin nothing new: do what earlier ones have left
    :raises RotationUnderWay: if another one is under way
    :raises VaultFault: if the current outer key is not available
    :raises CredentialUnreadable: if the vault cannot seal now
    """
    under_way = live()
    if under_way is not None:
        raise RotationUnderWay(kind=under_way.get_kind_display().lower())
    name, now = actor.email if isinstance(actor, User) else actor, database_now()
    # Ours until it has begun.
    row = Rotation(kind=kind, started_by=name, started_at=now, position=_position(kind), leased_until=now + _lease())
    with unique(RotationUnderWay(kind=row.get_kind_display().lower()), durable=True):
        row.save(force_insert=True)
    ours = Rotation.objects.filter(pk=row.pk, leased_until=row.leased_until)
    try:
        _begin(row, actor=actor, resume=resume)
    except BaseException:
        ours.delete()
        raise
    ours.update(leased_until=None)
    row.leased_until = None
    return row


def stop(row: Rotation, *, actor: User | str) -> bool:
    """Stop a rotation after its batch, and return whether it was under way. Another one does what it has left."""
    with durable():
        stopped = _end(row, Rotation.State.STOPPED)
        if stopped:
            _record(actor, "vault.rotation_stopped", row)
    return stopped


def carry_on(
    *, seconds: float = TURN_SECONDS, tell: Callable[[Rotation], object] = lambda row: None
) -> Rotation | None:
    """
    Carry the rotation on, batch by batch, until it ends, has to wait, or its time is over.

    Returns it as it was left; None if there is none, or another process has it.
    """
    until = time.monotonic() + seconds
    row = _claim()
    if row is None:
        return None
    try:
        if row.begun_at is None:
            _begin(row, actor=row.started_by)
        WORK[Rotation.Kind(row.kind)].renew()
        while row.state == Rotation.State.RUNNING and time.monotonic() < until:
            _do_batch(row)
            tell(row)
            claimed = _claim(row.leased_until)
            if claimed is None:
                row.refresh_from_db()
                return row
            row = claimed
    except (VaultFault, CredentialUnreadable) as fault:
        row.waiting, row.fault = str(fault)[:REASON_LENGTH], fault
        Rotation.objects.filter(pk=row.pk).update(waiting=row.waiting)
        tell(row)
    Rotation.objects.filter(pk=row.pk, leased_until=row.leased_until).update(leased_until=None)
    return row


def follow(row: Rotation, *, tell: Callable[[Rotation], object] = lambda row: None) -> Rotation:
    """
    Carry a rotation out to its end, or report its progress while a worker does. It waits for a silent key service.

    :raises VaultFault: if the current outer key is not available. A worker goes on when it is
    """
    while True:
        ours = carry_on(tell=tell)
        if ours is not None and isinstance(ours.fault, VaultFault) and not isinstance(ours.fault, KeyServiceSilent):
            raise ours.fault
        row.refresh_from_db()
        if row.state != Rotation.State.RUNNING:
            return row
        if ours is None:
            tell(row)
        if ours is None or row.waiting:
            leave_database()
            time.sleep(OPEN_SECONDS if row.waiting else LOOK_SECONDS)


def _begin(row: Rotation, *, actor: User | str, resume: bool = False) -> None:
    """Do what comes before the first batch. If the process that starts a rotation is killed meanwhile, another does."""
    kind = Rotation.Kind(row.kind)
    if not resume:
        WORK[kind].begin()
    row.left, row.begun_at = left_of(kind), database_now()
    with durable():
        Rotation.objects.filter(pk=row.pk).update(left=row.left, begun_at=row.begun_at)
        _record(actor, "vault.rotation_started", row, left=row.left)


def _position(kind: Rotation.Kind) -> str:
    """Return where a rotation begins: where the last one of its kind has ended, if too much of it failed."""
    before = Rotation.objects.filter(kind=kind).exclude(state=Rotation.State.RUNNING).order_by("-started_at").first()
    goes_around = before is not None and before.state == Rotation.State.FAILED and kind != Rotation.Kind.VERIFY
    return before.position if before is not None and goes_around else ""


def _lease() -> timedelta:
    is_remote = any(provider.is_remote for provider in kek_providers.configured())
    return LEASE_WITH_CALLS if is_remote else LEASE


def _claim(ours: datetime | None = None) -> Rotation | None:
    """Claim the rotation that is under way, or renew our claim. None if another process has it."""
    now = database_now()
    running = Rotation.objects.filter(state=Rotation.State.RUNNING)
    free = running.filter(Q(leased_until=None) | Q(leased_until__lte=now) | Q(leased_until=ours))
    until = now + _lease()
    if not free.update(leased_until=until):
        return None
    return running.filter(leased_until=until).first()


def _do_batch(row: Rotation) -> None:
    """
    Do the next batch, and note it, unless another process has taken the rotation up meanwhile: that did it too.

    :raises VaultFault: if a key service does not answer, or the outer key is not available
    :raises CredentialUnreadable: if a key service does not answer
    """
    work, began = WORK[Rotation.Kind(row.kind)], time.monotonic()
    batch = work.batch(row.position, list(row.failed))
    row.done += batch.done
    row.position = batch.position
    row.failed = {**row.failed, **batch.failed}
    row.left = work.count(row.position)
    row.waiting = ""
    row.seconds += time.monotonic() - began
    noted = Rotation.objects.filter(pk=row.pk, leased_until=row.leased_until).update(
        done=F("done") + batch.done,
        seconds=row.seconds,
        position=row.position,
        failed=row.failed,
        left=row.left,
        waiting="",
    )
    if not noted:
        return
    if batch.is_last or len(row.failed) >= FAILED_MAX:
        work.end()
        with durable():
            ended = _end(row, Rotation.State.FAILED if row.failed else Rotation.State.DONE)
            if ended:
                _record("job", "vault.rotation_ended", row, done=row.done, failed=len(row.failed))


def _end(row: Rotation, state: Rotation.State) -> bool:
    running = Rotation.objects.filter(pk=row.pk, state=Rotation.State.RUNNING)
    ended = bool(running.update(state=state, ended_at=database_now(), leased_until=None, waiting=""))
    if ended:
        row.state = state
    return ended


def _record(actor: User | str, action: str, row: Rotation, **detail: int) -> None:
    said = {"kind": row.kind, **detail}
    if isinstance(actor, User):
        record_operator(actor, action, object_id=row.pk, what=said)
    else:
        record_system(actor, action, object_id=row.pk, what=said)
