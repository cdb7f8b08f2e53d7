"""After a chaos run: does everything agree, and what did it all come to."""

from collections import Counter
from typing import Any

from billing.integrity import anchors, seals
from billing.models import CostEvent, Entitlement, SharedUsage
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.settlement import audit
from tests.chaos import world
from tests.dispatch.reconcile import unexplained


def differences(calls: list[dict[str, Any]]) -> list[str]:
    """Seal what is left, and compare the ledger with itself, with its seals, and with the provider's own log."""
    seals.seal()
    anchors.anchor()
    found: list[str] = []
    audit.audit(lambda difference: found.append(f"audit: {difference}"))
    found += [f"provider's log: {difference}" for difference in unexplained(calls)]
    for entitlement in Entitlement.objects.select_related("org").filter(org__slug=world.SHORT_OF_SHARED):
        used = sum(usage.used for usage in SharedUsage.objects.filter(org=entitlement.org))
        # A chaos run that goes over midnight has two days' runs.
        days = SharedUsage.objects.filter(org=entitlement.org).count()
        if used > (entitlement.shared_runs_per_day or 0) * days:
            found.append(f"shared runs: {used} of {entitlement.shared_runs_per_day} a day on {days} day(s)")
    return found


def totals(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Count what there is."""
    kinds = Counter(CostEvent.objects.values_list("kind", flat=True))
    attempts = Counter(Attempt.objects.values_list("state", flat=True))
    return {
        "ended": dict(sorted(Counter(Run.objects.values_list("state", flat=True)).items())),
        "calls": sum(call["path"] == "/v1/messages" for call in calls),
        "attempts": sum(attempts.values()),
        "settled": attempts[Attempt.State.SETTLED],
        "indeterminate": attempts[Attempt.State.INDETERMINATE],
        "never-sent": attempts[Attempt.State.VOID],
        "charges": kinds[CostEvent.Kind.CHARGE],
        "adjustments": kinds[CostEvent.Kind.ADJUSTMENT],
    }
