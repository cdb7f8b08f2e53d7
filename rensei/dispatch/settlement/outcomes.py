"""What the ends of calls come to, as settlement plans. Pure but for the clock that is passed in."""

from dataclasses import replace
from datetime import datetime
from typing import Protocol

from integrations.providers.base import Answer, ProviderFailure
from rensei.core.errors import RenseiError, StoredError
from rensei.core.usage import Usage, UsagePart, total
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.queue.claims import Stop
from rensei.dispatch.settlement.settle import RunEnd, SettlementPlan


class Call(Protocol):
    """A call as far as it was seen, by a worker of the server or by a machine that reports it."""

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


class RunTimeout(RenseiError):
    """The run did not end before its deadline."""

    code = "RUN_TIMEOUT"
    status = 504
    title = "Run timed out"
    message = (
        "The run did not end before its deadline. What was produced until then is charged; "
        "dispatch it again if it is still needed."
    )
    retryable = True


class RunInterrupted(RenseiError):
    """The worker died while the call was under way, so nobody knows how it ended."""

    code = "RUN_INTERRUPTED"
    status = 503
    title = "Run interrupted"
    message = (
        "The worker stopped while the provider was answering. The call may have been billed, so it is not repeated "
        "by itself; the ledger holds an estimate. Dispatch the run again if it is still needed."
    )
    retryable = True


def succeeded(call: Call, answer: Answer, *, now: datetime) -> SettlementPlan:
    """Settle a call by what the provider reported at its end."""
    end = RunEnd(state=Run.State.SUCCEEDED, text=answer.text, content=answer.content, stop_reason=answer.stop_reason)
    return SettlementPlan(
        run=call.run,
        now=now,
        attempt=call.attempt,
        usage=answer.usage,
        parts=answer.parts,
        # Parts say themselves which of them are estimated.
        estimated=answer.usage_estimated and not answer.parts,
        request_id=answer.request_id,
        end=end,
    )


def stopped(call: Call, stop: Stop, *, now: datetime) -> SettlementPlan:
    """
    Settle a call that we hung up on, as an estimate, by what was reported and seen.

    One that had said nothing yet may not even have been sent, so nobody can say that it is owed.
    """
    was_heard = call.usage is not None or bool(call.text)
    usage = estimated_usage(call.usage, call.attempt, call.text)
    return SettlementPlan(
        run=call.run,
        now=now,
        attempt=call.attempt,
        attempt_state=Attempt.State.SETTLED if was_heard else Attempt.State.INDETERMINATE,
        usage=usage,
        parts=_adding_up_to(usage, call.parts),
        estimated=True,
        request_id=call.request_id,
        error=_stop_error(stop),
        end=_stopped_end(stop, call.text),
    )


def stopped_before_sending(call: Call, stop: Stop, *, now: datetime) -> SettlementPlan:
    """Settle a call that was written down and then never made."""
    return SettlementPlan(
        run=call.run,
        now=now,
        attempt=call.attempt,
        attempt_state=Attempt.State.VOID,
        error=_stop_error(stop),
        end=_stopped_end(stop, ""),
    )


def failed(call: Call, failure: ProviderFailure, *, error: StoredError, again: bool, now: datetime) -> SettlementPlan:
    """Settle a call that failed: never sent, refused at no cost, cut off after some output, or unknown."""
    state, usage, estimated = Attempt.State.SETTLED, Usage(), False
    if not failure.sent:
        state = Attempt.State.VOID
    elif failure.output_seen:
        usage, estimated = estimated_usage(failure.usage, call.attempt, call.text), True
    elif failure.usage is not None or failure.maybe_billed:
        # It may be retried, and gave nothing: the organization does not owe what nobody can say was billed.
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
    """End a run that was stopped between two calls."""
    return SettlementPlan(run=run, now=now, end=_stopped_end(stop, ""))


def given_up(run: Run, attempt: Attempt | None, *, reported: Usage | None, text: str, now: datetime) -> SettlementPlan:
    """End a run whose worker died, or whose deadline passed: an open call becomes indeterminate."""
    refusal: RenseiError | None = RunInterrupted() if attempt is not None else RunTimeout()
    state = Run.State.FAILED
    if run.cancel_requested_at is not None:
        refusal, state = None, Run.State.CANCELLED
    error = refusal_error(refusal) if refusal else None
    return SettlementPlan(
        run=run,
        now=now,
        attempt=attempt,
        attempt_state=Attempt.State.INDETERMINATE,
        usage=estimated_usage(reported, attempt, text) if attempt else Usage(),
        estimated=True,
        error=error,
        end=RunEnd(state=state, error=error, text=text),
        expired_before=now,
    )


def estimated_usage(reported: Usage | None, attempt: Attempt, text: str) -> Usage:
    """What was reported, with the output that was seen but not reported yet; else what the prompt looked like."""
    usage = reported or Usage(input_tokens=attempt.input_tokens_estimate)
    seen = len(text.encode()) // 4  # Four bytes make a token of plain text, near enough for an estimate.
    return usage + Usage(output_tokens=max(0, seen - usage.output_tokens))


def _adding_up_to(usage: Usage, parts: tuple[UsagePart, ...]) -> tuple[UsagePart, ...]:
    """Give what is estimated beyond the parts to the first, which is that of the model that answers."""
    if not parts or usage == Usage():
        return ()
    first, *others = parts
    return (replace(first, usage=first.usage + (usage - total(parts))), *others)


def refusal_error(refusal: RenseiError) -> StoredError:
    """Write a refusal as a run's error."""
    return {"code": refusal.code, "detail": refusal.cause, "fix": refusal.fix, "retryable": refusal.retryable}


def _stopped_end(stop: Stop, text: str) -> RunEnd | None:
    """A run whose lease was lost is somebody else's to end."""
    if stop is Stop.LEASE_LOST:
        return None
    state = Run.State.CANCELLED if stop is Stop.CANCELLED else Run.State.FAILED
    return RunEnd(state=state, error=_stop_error(stop), text=text)


def _stop_error(stop: Stop) -> StoredError | None:
    return refusal_error(RunTimeout()) if stop is Stop.DEADLINE else None
