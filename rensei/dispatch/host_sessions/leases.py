"""
Host sessions on the server: a machine leases a queued run, renews the lease, reports progress, and ends the run.

The machine calls the provider with its own login. The server sends the finished parameters of the call and receives
the output and the token counts. There is no field for a credential.
"""

import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q, QuerySet
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Right

from integrations.keys import leaks
from integrations.providers.base import ADAPTERS, Answer, Interrupted, ProviderFailure, Told
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import FieldError, RenseiError, Said
from rensei.core.limits import limit
from rensei.core.logs import KEY_SHAPE
from rensei.core.usage import Usage, UsagePart, total
from rensei.dispatch import stored_bytes
from rensei.dispatch.admission import decide
from rensei.dispatch.execution import preparation
from rensei.dispatch.host_sessions.reported_usage import require_possible
from rensei.dispatch.models import Attempt, CapacityPool, Run, RunChunk
from rensei.dispatch.modes.host_session import RequiresLocalCapacity, WrongMachine
from rensei.dispatch.queue import claims
from rensei.dispatch.queue.claims import Stop
from rensei.dispatch.settlement import outcomes, settle
from rensei.dispatch.settlement.settle import SettlementPlan
from rensei.dispatch.wire import RunAnswer
from rensei.orgs import storage
from rensei.orgs.access import Access
from rensei.orgs.models import Host

SEEN_EVERY = timedelta(seconds=30)
TRIES_MAX = limit(
    20, "runs", what="Runs that a machine's request tries to take", told="the caller: 204, and it asks again"
)
BUILD_SECONDS_MAX = limit(
    30.0,
    "seconds",
    what="Time in which the request of a machine's run is built, its pictures included",
    told="the run: it stays queued",
)
PIECES_BEFORE = limit(
    32,
    "pieces",
    what="Earlier pieces of a machine's answer in which the beginning of a key is looked for",
    told="the run: a mark replaces the key in its output, and not in its events",
)
CLOUD = frozenset(CapacityPool.Provider.values) - {CapacityPool.Provider.LOCAL}
TRY_AGAIN = frozenset(
    {
        "PROVIDER_RATE_LIMITED",
        "PROVIDER_OVERLOADED",
        "PROVIDER_UNAVAILABLE",
        "PROVIDER_STREAM_BROKEN",
        "HOST_PLAN_EXHAUSTED",
    }
)
# After these it is unknown whether the provider produced and billed output. The other codes are refusals.
MAYBE_BILLED = frozenset({"PROVIDER_UNAVAILABLE", "PROVIDER_STREAM_BROKEN"})


class LeaseLost(RenseiError):
    """The worker did not renew the lease in time, or never had the run."""

    code = "LEASE_LOST"
    status = 409
    title = "Lease lost"
    message = Said(
        "The lease of this run is not this worker's any more.",
        "Stop working on it; what is reported of a call that was made is still accounted for.",
    )


class HostLoginMissing(RenseiError):
    """The machine has no working login to the provider."""

    code = "HOST_LOGIN_MISSING"
    status = 409
    title = "No login on this machine"
    message = Said(
        "Machine '{host}' has no working login to the provider.",
        "Log in there, in the provider's own flow, and dispatch the run again.",
    )


class HostPlanExhausted(RenseiError):
    """The account of the machine's login has no plan usage or credit left."""

    code = "HOST_PLAN_EXHAUSTED"
    status = 402
    title = "The account's plan is used up"
    message = Said(
        "The account that machine '{host}' is logged in to has used up its plan or its credit.",
        ("Wait until it renews, or use another auth mode: Rensei never falls back to another payer by itself."),
    )
    retryable = True


REFUSALS: dict[str, type[RenseiError]] = {
    "HOST_LOGIN_MISSING": HostLoginMissing,
    "HOST_PLAN_EXHAUSTED": HostPlanExhausted,
}


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A run leased to a machine, its attempt, and the finished parameters of its call."""

    run: Run
    attempt: Attempt
    params: dict[str, Any]

    @property
    def until(self) -> datetime:
        return self.attempt.started_at + claims.LEASE


@dataclass(frozen=True, kw_only=True)
class LeaseState:
    """When a machine's lease expires, and whether the machine must stop the run."""

    until: datetime
    cancel_requested: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """
    A machine's report of how its call ended. `usage` is None if the machine did not report it. `told` is what the
    answer itself tells of its models and their usage, which counts instead.

    `sent` is True if the request may have reached the provider. `error_code` is one of the codes that a machine
    may report; `detail` and `fix` are the machine's texts.
    """

    state: Run.State
    sent: bool
    text: str = ""
    content: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str = ""
    usage: Usage | None = None
    told: Told | None = None
    estimated: bool = False
    error_code: str = ""
    detail: str = ""
    fix: str = ""
    request_id: str = ""


def take(access: Access, run: Run) -> Lease | None:
    """
    Lease one run to the caller's machine. Returns None if another worker of the machine has it, or it has ended.

    :raises WrongMachine: if the run is for another machine
    :raises RenseiError: if the run cannot be executed; it has then ended with this error
    """
    host = _machine(access)
    _require_its_machine(run, host)
    _note_seen(host)
    return _lease(run, host, until=_end_of_building()) if run.state == Run.State.QUEUED else None


def take_next(access: Access) -> Lease | None:
    """Lease the oldest queued run of the caller's machine. A run that cannot be executed ends and is skipped."""
    host = _machine(access)
    _note_seen(host)
    waiting = claims.waiting_for_host(host.id, now=database_now())
    if access.project is not None:
        waiting = waiting.filter(project=access.project)
    until = _end_of_building()
    for run_id in waiting.order_by("id").values_list("id", flat=True)[:TRIES_MAX]:
        try:
            lease = _lease(Run.objects.select_related("org", "project").get(id=run_id), host, until=until)
        except RenseiError:
            # The error is stored in the run, where its caller can read it.
            continue
        if lease is not None:
            return lease
    return None


def heartbeat(access: Access, run: Run, *, epoch: int) -> LeaseState:
    """
    Renew a lease.

    :raises LeaseLost: if the machine no longer holds the lease
    """
    host = _machine(access)
    _require_its_machine(run, host)
    until = claims.renew_lease(run.id, owner=claims.host_owner(host.id), epoch=epoch)
    if until is None:
        raise _lost(run)
    _note_seen(host)
    late = run.deadline_at <= until - claims.LEASE
    return LeaseState(until=until, cancel_requested=late or bool(claims.cancelled_among([run.id])))


def add_chunks(access: Access, run: Run, *, epoch: int, text: str, usage: Usage | None) -> LeaseState:
    """
    Append new output and usage to the events of the run, and renew the lease.

    :raises FieldError: if the reported usage exceeds what the model allows
    :raises LeaseLost: if the machine no longer holds the lease; nothing is appended then
    """
    if usage is not None:
        require_possible(run, UsagePart(usage=usage))
    state = heartbeat(access, run, epoch=epoch)
    events: list[tuple[RunChunk.Kind, dict[str, Any]]] = []
    if text:
        events.append((RunChunk.Kind.DELTA, {"text": _without_keys(run, text)}))
    if usage is not None:
        events.append((RunChunk.Kind.USAGE, usage.as_dict()))
    for kind, data in events:
        if not claims.add_chunk(run, kind=kind, data=data):
            raise _lost(run)
    return state


def finish(access: Access, run: Run, *, epoch: int, report: Report) -> Run:
    """
    Settle the machine's call and end its run. The operation is idempotent.

    :raises FieldError: if the report is inconsistent, or its usage or output exceeds what the call allows
    :raises LeaseLost: if the run was abandoned before; the call is then settled late, by one adjustment
    """
    host = _machine(access)
    _require_its_machine(run, host)
    _require_whole(report)
    attempt = Attempt.objects.filter(run=run, epoch=epoch, credential_id=host.id).first()
    if attempt is None:
        raise _lost(run)
    if run.state in Run.ENDED and run.epoch == epoch:
        return run
    parts = _parts(run, attempt, report)
    for part in parts:
        require_possible(run, part, pointer="/told/reports")
    if not parts and report.usage is not None:
        require_possible(run, UsagePart(usage=report.usage))
    if storage.size_of(report.text, report.content) > stored_bytes.of_report_at_most(run):
        raise FieldError(pointer="/output", reason=f"{run.max_tokens} tokens do not make so long an answer.")
    settle.write([_plan(run, attempt, host, report, parts, now=database_now())])
    run.refresh_from_db()
    if run.epoch != epoch:
        raise _lost(run)
    return run


def _machine(access: Access) -> Host:
    access.require_writer()
    if access.host is None:
        raise WrongMachine(reason="This token is not bound to a machine.")
    return access.host


def _require_its_machine(run: Run, host: Host) -> None:
    if run.auth_mode != AuthMode.HOST_SESSION or run.host_id != host.id:
        raise WrongMachine(reason="This run does not belong to this machine.")


def _note_seen(host: Host) -> None:
    now = database_now()
    long_ago = Q(last_seen_at=None) | Q(last_seen_at__lt=now - SEEN_EVERY)
    Host.objects.filter(long_ago, pk=host.pk).update(last_seen_at=now)


def _end_of_building() -> float:
    return time.monotonic() + BUILD_SECONDS_MAX


def _lease(run: Run, host: Host, *, until: float) -> Lease | None:
    """
    Build the request first and then claim the run: building may fetch images, and no lease must expire meanwhile.

    Returns None if the images take too long: those of others may have their turn, and the run stays queued until then.
    """
    try:
        decide.require_running(run)
        _require_local(run)
        built = preparation.build_request(run, ADAPTERS[run.provider], seconds_left=lambda: until - time.monotonic())
    except Interrupted:
        return None
    except RenseiError as refusal:
        settle.write([outcomes.without_call(run, outcomes.refusal_error(refusal), now=database_now())])
        run.refresh_from_db()
        refusal.extra["run"] = RunAnswer(run).data
        raise
    attempt = claims.claim_for_host(run.id, host_id=host.id, input_tokens=built.input_tokens_about)
    return Lease(run=attempt.run, attempt=attempt, params=built.params) if attempt else None


def _require_local(run: Run) -> None:
    """Refuse the run if its pool is now a cloud pool. A pool that was switched off or removed is accepted."""
    pool = CapacityPool.objects.for_org(run.org).filter(name=run.pool).first()
    if (pool.provider_id if pool else run.pool) in CLOUD:
        raise RequiresLocalCapacity(pool=run.pool)


def _without_keys(run: Run, text: str) -> str:
    """Blot out known keys in new output. Of one that began in the output before, the beginning is removed there."""
    earlier = run.chunks.filter(kind=RunChunk.Kind.DELTA).order_by("-seq")
    ends = earlier.annotate(end=Right(KeyTextTransform("text", "data"), leaks.LONGEST)).values_list("end", flat=True)
    _, begun = leaks.split_unfinished("".join(reversed(ends[:PIECES_BEFORE])))
    found = leaks.find_or_blot(begun + text, org=run.org)
    start, _ = next(found.places(begun + text), (len(begun), ""))
    if start < len(begun):
        _remove_end(earlier, length=len(begun) - start)
    return str(found.blot(begun + text))[min(start, len(begun)) :]


def _remove_end(earlier: QuerySet[RunChunk], *, length: int) -> None:
    """Remove the last characters of a run's output, which may be in several events."""
    for chunk in earlier[:PIECES_BEFORE]:
        text = chunk.data["text"]
        kept = text[: max(len(text) - length, 0)]
        RunChunk.objects.filter(pk=chunk.pk).update(data={**chunk.data, "text": kept})
        length -= len(text) - len(kept)
        if not length:
            return


def _lost(run: Run) -> LeaseLost:
    run.refresh_from_db()
    return LeaseLost(extra={"run": RunAnswer(run).data})


def _require_whole(report: Report) -> None:
    """:raises FieldError: if the parts of a report contradict each other"""
    if report.state == Run.State.SUCCEEDED and not report.sent:
        raise FieldError(pointer="/sent", reason="A call that succeeded was sent.")
    if (report.state == Run.State.FAILED) is not bool(report.error_code):
        raise FieldError(pointer="/error", reason="A failed run, and only that, has an error.")


@dataclass(frozen=True, kw_only=True)
class _ReportedCall:
    """The call as the machine reported it, in the form from which settlements are planned."""

    run: Run
    attempt: Attempt
    text: str
    usage: Usage | None
    request_id: str
    parts: tuple[UsagePart, ...]
    unheard: Usage | None = None


def _parts(run: Run, attempt: Attempt, report: Report) -> tuple[UsagePart, ...]:
    """Return what each model used, if the machine has passed on what the answer tells."""
    if report.told is None:
        return ()
    parts = ADAPTERS[run.provider].read_usage(report.told, input_tokens_about=attempt.input_tokens_estimate)
    return tuple(replace(part, estimated=True) for part in parts) if report.estimated else parts


def _plan(
    run: Run, attempt: Attempt, host: Host, report: Report, parts: tuple[UsagePart, ...], *, now: datetime
) -> SettlementPlan:
    call = _ReportedCall(
        run=run,
        attempt=attempt,
        text=report.text,
        usage=total(parts) if parts else report.usage,
        request_id=report.request_id,
        parts=parts,
    )
    if report.state == Run.State.SUCCEEDED:
        return outcomes.succeeded(call, _answer(call, report), now=now)
    if report.state == Run.State.CANCELLED or report.error_code == "RUN_TIMEOUT":
        stop = _stop(run, report, now=now)
        if not report.sent:
            return outcomes.stopped_before_sending(call, stop, now=now)
        return outcomes.stopped(call, stop, now=now)
    failure = _failure(host, call, report)
    return outcomes.failed(call, failure, error=failure.as_error(), again=False, now=now)


def _answer(call: _ReportedCall, report: Report) -> Answer:
    return Answer(
        text=report.text,
        content=report.content,
        stop_reason=report.stop_reason,
        usage=call.usage or outcomes.estimated_usage(None, call.attempt, report.text),
        request_id=report.request_id,
        usage_estimated=report.estimated or call.usage is None,
        parts=call.parts,
    )


def _stop(run: Run, report: Report, *, now: datetime) -> Stop:
    """Return why the machine stopped: the run was cancelled, or its deadline has passed."""
    if run.cancel_requested_at is not None:
        return Stop.CANCELLED
    late = report.error_code == "RUN_TIMEOUT" or run.deadline_at <= now
    return Stop.DEADLINE if late else Stop.CANCELLED


def _failure(host: Host, call: _ReportedCall, report: Report) -> ProviderFailure:
    """Convert a machine's report of a failure to the form of the adapters. Keys quoted in its texts are masked."""
    code, refusal = report.error_code, REFUSALS.get(report.error_code)
    message, fix = f"The call from machine '{host.name}' failed.", ""
    if refusal is not None:
        ours = refusal(host=host.name)
        message, fix = ours.cause, ours.fix
    return ProviderFailure(
        code=code,
        message=KEY_SHAPE.sub(r"\1***", report.detail) or message,
        fix=KEY_SHAPE.sub(r"\1***", report.fix) or fix,
        retryable=code in TRY_AGAIN,
        sent=report.sent,
        maybe_billed=code in MAYBE_BILLED,
        output_seen=bool(report.text),
        request_id=report.request_id,
        parts=call.parts or ((UsagePart(usage=call.usage),) if call.usage is not None else ()),
        text=report.text,
    )
