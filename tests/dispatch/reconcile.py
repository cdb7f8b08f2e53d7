"""Exactly once, as the ledger promises it, checked against the provider's own log."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from billing.models import CostEvent, Hold, SharedUsage, UsageDaily
from rensei import worker
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.settlement import audit


def assert_explained(simulator: Any) -> None:
    """
    Every call upstream has exactly one attempt and one charge; the charges beyond the calls are attempts
    that nobody saw and that were never sent; tokens agree but on lines that say they are estimates. The bytes that
    are counted for each organization are those that are stored.
    """
    assert worker.count_stored_bytes() == {}
    assert [str(difference) for difference in audit.differences()] == []
    assert list(unexplained(simulator.requests())) == []


def unexplained(requests: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Name everything that the provider's log and the ledger do not agree on, once every run has ended."""
    sent = [request for request in requests if request["path"] == "/v1/messages"]
    attempts = {attempt.id: attempt for attempt in Attempt.objects.all()}
    lines: dict[str, list[CostEvent]] = defaultdict(list)
    for line in CostEvent.objects.order_by("id"):
        lines[line.attempt_id].append(line)
    charged = Counter(
        line.attempt_id for of_attempt in lines.values() for line in of_attempt if line.kind == CostEvent.Kind.CHARGE
    )

    for attempt_id, count in Counter(call["attempt_id"] for call in sent).items():
        if count > 1:
            yield f"{count} calls carried the attempt {attempt_id}"
    for call in sent:
        yield from _unexplained_call(call, attempts, lines, charged)
    called = {call["attempt_id"] for call in sent}
    for attempt_id, count in charged.items():
        if count > 1:
            yield f"the attempt {attempt_id} was charged {count} times"
        state = attempts[attempt_id].state if attempt_id in attempts else "no attempt"
        if attempt_id not in called and state != Attempt.State.INDETERMINATE:
            yield f"a charge without a call: {attempt_id}, {state}"
    for attempt in attempts.values():
        if attempt.state == Attempt.State.OPEN:
            yield f"an attempt is still open: {attempt.id} of {attempt.run_id}"
    yield from _unfinished(lines)


def _unexplained_call(
    call: dict[str, Any], attempts: dict[str, Attempt], lines: dict[str, list[CostEvent]], charged: Counter[str]
) -> Iterator[str]:
    attempt_id = call["attempt_id"]
    if attempt_id not in attempts:
        yield f"a call without an attempt: {attempt_id}"
    elif not charged[attempt_id]:
        yield f"a call without a charge: {attempt_id}, {attempts[attempt_id].state}"
    elif not any(line.estimated for line in lines[attempt_id]):
        reported = call["usage"] or {}
        for name in ("input_tokens", "output_tokens"):
            found = sum(getattr(line, name) for line in lines[attempt_id])
            if found != reported.get(name, 0):
                yield f"{name} of {attempt_id}: the provider says {reported.get(name, 0)}, the ledger {found}"


def _unfinished(lines: dict[str, list[CostEvent]]) -> Iterator[str]:
    for run in Run.objects.exclude(state__in=Run.ENDED):
        yield f"a run that did not end: {run.id} {run.state}"
    for hold in Hold.objects.all():
        yield f"a hold is left: {hold.run_id}"
    for usage in SharedUsage.objects.exclude(held=0):
        yield f"shared runs are held: {usage.held} of {usage.org_id} on {usage.day}"
    amounts = sum(line.amount_picodollars or 0 for of_attempt in lines.values() for line in of_attempt)
    rolled_up = sum(row.amount_picodollars for row in UsageDaily.objects.all())
    if amounts != rolled_up:
        yield f"the lines add up to {amounts}, the roll-ups to {rolled_up}"
    of_run: dict[str, list[CostEvent]] = defaultdict(list)
    for of_attempt in lines.values():
        for line in of_attempt:
            if line.kind == CostEvent.Kind.CAPACITY:
                continue
            of_run[line.run_id].append(line)
    for run in Run.objects.all():
        of_this = of_run[run.id]
        if of_this and all(line.amount_picodollars is not None for line in of_this):
            amount = sum(line.amount_picodollars or 0 for line in of_this)
            if run.amount_picodollars != amount:
                yield f"{run.id} says {run.amount_picodollars}, its lines {amount}"
