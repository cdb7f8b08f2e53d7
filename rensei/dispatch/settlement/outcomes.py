"""Settlement plans for each way in which a call can end. The functions are pure; the time is passed in."""

from dataclasses import replace
from datetime import datetime
from typing import Protocol

from integrations.providers.base import Answer, ProviderFailure
from rensei.core.errors import RenseiError, Said, StoredError
from rensei.core.usage import Usage, UsagePart, total
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.queue.claims import Stop
from rensei.dispatch.settlement.settle import RunEnd, SettlementPlan


class SettledCall(Protocol):
    """A call as observed so far, by a server worker or by a machine that reports it."""

    @property
    def run(self) -> Run: ...

    @property
    def attempt(self) -> Attempt: ...

    @property
    def text(self) -> str: ...

    @property
    def usage(self) -> Usage | None: ...

    @property
    def parts(self) -> tuple[UsagePart, ...]: ...

    @property
    def request_id(self) -> str: ...

    @property
    def unheard(self) -> Usage | None:
        """The most that a request has used of which nothing has come back. None if nothing of it was sent."""


class RunTimeout(RenseiError):
    """The run did not end before its deadline."""

    code = "RUN_TIMEOUT"
    status = 504
    title = "Run timed out"
    message = Said(
        "The run did not end before its deadline.",
        "What was produced until then is charged; dispatch it again if it is still needed.",
    )
    retryable = True


class RunInterrupted(RenseiError):
    """The worker died during the call, so it is unknown how the call ended."""

    code = "RUN_INTERRUPTED"
    status = 503
    title = "Run interrupted"
    message = Said(
        "The worker stopped while the provider was answering.",
        (
            "The call may have been billed, so it is not repeated by itself; the ledger holds an estimate. "
            "Dispatch the run again if it is still needed."
        ),
    )
    retryable = True


# Where the caller, or the limit on its time, ended a call.
_OF_THE_CALLER = frozenset({Stop.CANCELLED, Stop.DEADLINE})
_REFUSALS: dict[Stop, type[RenseiError]] = {Stop.DEADLINE: RunTimeout, Stop.SHUTDOWN: RunInterrupted}


def succeeded(call: SettledCall, answer: Answer, *, now: datetime) -> SettlementPlan:
    """Settle a call with the usage that the provider reported at its end."""
    end = RunEnd(state=Run.State.SUCCEEDED, text=answer.text, content=answer.content, stop_reason=answer.stop_reason)
    return SettlementPlan(
        run=call.run,
        now=now,
        attempt=call.attempt,
        usage=answer.usage,
        parts=answer.parts,
        # Each part has its own `estimated` flag.
        estimated=answer.usage_estimated and not answer.parts,
        request_id=answer.request_id,
        end=end,
    )


def stopped(call: SettledCall, stop: Stop, *, now: datetime) -> SettlementPlan:
    """
    Settle a call that was aborted, with an estimate from the reported usage and the received output.

    A call of which nothing has arrived is indeterminate and not owed, unless its own caller stopped it after it was
    sent: the provider bills it.
    """
    was_heard = call.usage is not None or bool(call.text)
    unheard = _owed_unheard(call) if not was_heard and stop in _OF_THE_CALLER else None
    usage = unheard or estimated_usage(call.usage, call.attempt, call.text)
    is_owed = was_heard or unheard is not None
    return SettlementPlan(
        run=call.run,
        now=now,
        attempt=call.attempt,
        attempt_state=Attempt.State.SETTLED if is_owed else Attempt.State.INDETERMINATE,
        usage=usage,
        parts=_adding_up_to(usage, call.parts),
        estimated=True,
        request_id=call.request_id,
        error=_stop_error(stop),
        end=stopped_end(stop, call.text),
    )


def stopped_before_sending(call: SettledCall, stop: Stop, *, now: datetime) -> SettlementPlan:
    """Settle a call whose attempt was written but which was never sent."""
    return SettlementPlan(
        run=call.run,
        now=now,
        attempt=call.attempt,
        attempt_state=Attempt.State.VOID,
        error=_stop_error(stop),
        end=stopped_end(stop, ""),
    )


def failed(
    call: SettledCall, failure: ProviderFailure, *, error: StoredError, again: bool, now: datetime
) -> SettlementPlan:
    """Settle a call that failed: never sent, refused at no cost, interrupted after some output, or unknown."""
    state, usage, estimated = Attempt.State.SETTLED, Usage(), False
    if not failure.sent:
        state = Attempt.State.VOID
    elif failure.gave_up and failure.usage is None and (unheard := _owed_unheard(call)) is not None:
        # The provider may still be answering. Otherwise, a request that takes longer than we wait would cost nothing.
        usage, estimated = unheard, True
    elif failure.output_seen:
        usage, estimated = estimated_usage(failure.usage, call.attempt, call.text), True
    elif failure.usage is not None or failure.maybe_billed:
        # It produced no output and may be retried. Whether it was billed is unknown, so it is not owed.
        state, usage, estimated = Attempt.State.INDETERMINATE, estimated_usage(failure.usage, call.attempt, ""), True
    return SettlementPlan(
        run=call.run,
        now=now,
        attempt=call.attempt,
        attempt_state=state,
        usage=usage,
        parts=_adding_up_to(usage, failure.parts),
        estimated=estimated,
        request_id=failure.request_id or call.request_id,
        error=error,
        end=None if again else RunEnd(state=Run.State.FAILED, error=error, text=call.text),
    )


def without_call(run: Run, error: StoredError, *, now: datetime) -> SettlementPlan:
    """End a run that could not make its call: nothing was sent, nothing is charged."""
    return SettlementPlan(run=run, now=now, end=RunEnd(state=Run.State.FAILED, error=error))


def stopped_without_call(run: Run, stop: Stop, *, now: datetime) -> SettlementPlan:
    """End a run that was stopped before a call or between two calls."""
    return SettlementPlan(run=run, now=now, end=stopped_end(stop, ""))


def sandbox_ended(
    run: Run, open_attempt: Attempt | None, *, end: RunEnd, text: str, now: datetime
) -> list[SettlementPlan]:
    """
    End a run whose sandbox has ended. The gateway settles its calls; the end of one that is still open is not known.
    """
    plans = [SettlementPlan(run=run, now=now, end=end)]
    if open_attempt is not None:
        unknown = SettlementPlan(
            run=run,
            now=now,
            attempt=open_attempt,
            attempt_state=Attempt.State.INDETERMINATE,
            usage=estimated_usage(None, open_attempt, _answer_in(run, text)),
            estimated=True,
            error=end.error,
        )
        plans.insert(0, unknown)
    return plans


def given_up(run: Run, attempt: Attempt | None, *, reported: Usage | None, text: str, now: datetime) -> SettlementPlan:
    """End a run whose worker died, or whose deadline passed: an open call becomes indeterminate."""
    # A sandbox's call may have been settled by the gateway.
    has_called = attempt is not None or (run.in_sandbox and run.attempt_count > 0)
    refusal: RenseiError | None = RunInterrupted() if has_called else RunTimeout()
    state = Run.State.FAILED
    if run.cancel_requested_at is not None:
        refusal, state = None, Run.State.CANCELLED
    error = refusal_error(refusal) if refusal else None
    return SettlementPlan(
        run=run,
        now=now,
        attempt=attempt,
        attempt_state=Attempt.State.INDETERMINATE,
        usage=estimated_usage(reported, attempt, _answer_in(run, text)) if attempt else Usage(),
        estimated=True,
        error=error,
        end=RunEnd(state=state, error=error, text=text),
        expired_before=now,
    )


def estimated_usage(reported: Usage | None, attempt: Attempt, text: str) -> Usage:
    """Return the reported usage, else the estimate of the prompt, plus received output that was not yet reported."""
    usage = reported or Usage(input_tokens=attempt.input_tokens_estimate)
    seen = len(text.encode()) // 4  # About four bytes of plain text are one token: sufficient for an estimate.
    return usage + Usage(output_tokens=max(0, seen - usage.output_tokens))


def _answer_in(run: Run, text: str) -> str:
    """Return what is known of the answer to a call: the text of an agent is that of its program, and none of it."""
    return "" if run.is_agent else text


def _owed_unheard(call: SettledCall) -> Usage | None:
    """
    Return what is owed for a request of which nothing has come back: nothing, unless its cost was held before it, for
    a key of the platform or a cap.
    """
    return call.unheard if call.run.is_cost_held else None


def _adding_up_to(usage: Usage, parts: tuple[UsagePart, ...]) -> tuple[UsagePart, ...]:
    """Add the usage that is estimated beyond the parts to the first part, that of the answering model."""
    if not parts or usage == Usage():
        return ()
    first, *others = parts
    more = usage - total(parts)
    return (replace(first, usage=first.usage + more, unreported=first.unreported + more), *others)


def refusal_error(refusal: RenseiError) -> StoredError:
    """Convert a refusal to the stored error of a run."""
    return {"code": refusal.code, "detail": refusal.cause, "fix": refusal.fix, "retryable": refusal.retryable}


def stopped_end(stop: Stop, text: str) -> RunEnd | None:
    """Return the end of a stopped run, or None if its lease was lost: then another process ends it."""
    if stop is Stop.LEASE_LOST:
        return None
    state = Run.State.CANCELLED if stop is Stop.CANCELLED else Run.State.FAILED
    return RunEnd(state=state, error=_stop_error(stop), text=text)


def _stop_error(stop: Stop) -> StoredError | None:
    refusal = _REFUSALS.get(stop)
    return refusal_error(refusal()) if refusal else None
