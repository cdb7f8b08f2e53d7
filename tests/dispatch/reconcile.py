"""Exactly once, as the ledger promises it, checked against the provider's own log."""

from typing import Any

from billing.models import CostEvent, Hold, SharedUsage, UsageDaily
from rensei.dispatch import audit
from rensei.dispatch.models import Attempt, Run


def assert_explained(simulator: Any) -> None:
    """
    Every call upstream has exactly one attempt and one charge; the charges beyond the calls are attempts
    that nobody saw and that were never sent; tokens agree but on lines that say they are estimates.
    """
    assert [str(difference) for difference in audit.differences()] == []

    calls = {call["attempt_id"]: call for call in simulator.requests() if call["path"] == "/v1/messages"}
    sent = [call for call in simulator.requests() if call["path"] == "/v1/messages"]
    charges = {charge.attempt_id: charge for charge in CostEvent.objects.filter(kind=CostEvent.Kind.CHARGE)}
    attempts = {attempt.id: attempt for attempt in Attempt.objects.all()}

    assert len(calls) == len(sent), "two calls carried one attempt"
    assert set(calls) <= set(attempts), "a call without an attempt"
    assert set(calls) <= set(charges), "a call without a charge"
    assert len(charges) == CostEvent.objects.filter(kind=CostEvent.Kind.CHARGE).count(), "an attempt charged twice"
    for attempt_id in set(charges) - set(calls):
        assert attempts[attempt_id].state == Attempt.State.INDETERMINATE, "a charge without a call"
    assert {a.state for a in attempts.values()} <= {"SETTLED", "VOID", "INDETERMINATE"}
    for attempt_id, call in calls.items():
        lines = CostEvent.objects.filter(attempt_id=attempt_id).order_by("id")
        if not any(line.estimated for line in lines):
            reported = call["usage"] or {}
            assert sum(line.output_tokens for line in lines) == reported.get("output_tokens", 0)
            assert sum(line.input_tokens for line in lines) == reported.get("input_tokens", 0)

    assert not Run.objects.filter(state__in=["QUEUED", "RUNNING"]).exists(), "a run that did not end"
    assert not Hold.objects.exists()
    assert not SharedUsage.objects.exclude(held=0).exists()
    amounts = [line.amount_picodollars or 0 for line in CostEvent.objects.all()]
    assert sum(amounts) == sum(row.amount_picodollars for row in UsageDaily.objects.all()), "roll-ups differ"
    for run in Run.objects.all():
        lines = CostEvent.objects.filter(run_id=run.id)
        if lines and all(line.amount_picodollars is not None for line in lines):
            assert run.amount_picodollars == sum(line.amount_picodollars or 0 for line in lines)
