"""The most that one run may cost, which its caller names as `maxCostUsd`: all of its calls together never cost more."""

from datetime import datetime

from django.db.models import Sum

from billing.limits import caps
from billing.models import CostEvent
from rensei.core.errors import RenseiError, Said
from rensei.core.money import dollars
from rensei.dispatch.models import Attempt, Run


class RunCostExceeded(RenseiError):
    """The next call of the run may cost more than is left of what the run may cost."""

    code = "SPEND_CAP_EXCEEDED"
    status = 402
    title = "Spending cap exceeded"
    message = Said(
        "A call of this run may cost up to ${amount}, and its maxCostUsd of ${limit} has ${left} left.",
        "Lower maxTokens, or raise maxCostUsd.",
    )
    gateway_message = (
        message.replace("its maxCostUsd", "its cap").replace("maxTokens", "max_tokens").replace("maxCostUsd", "the cap")
    )


def require_room(most: int, *, spent: int, at_most: int) -> None:
    """
    Check what a run may cost before a call, in picodollars.

    :raises RunCostExceeded: if the call does not fit
    """
    left = max(0, most - spent)
    if at_most > left:
        figures = {"limit": dollars(most), "used": dollars(spent)}
        raise RunCostExceeded(amount=dollars(at_most), left=dollars(left), limit=dollars(most), extra=figures)


def require_another_call(run: Run, *, now: datetime) -> None:
    """
    Check the caps of a run whose failed call may have been billed, before the run makes its next one.

    :raises RunCostExceeded: if the run may cost no other call
    :raises SpendCapExceeded: if what the run holds of a token's cap no longer covers both
    """
    if not run.is_agent:
        # An agent holds what all of its calls may cost.
        caps.require_another_attempt(run.caps, now=now)
    if run.max_cost_picodollars is not None:
        assert run.call_picodollars_at_most is not None, "A run whose cost is not known was refused by the gate"
        require_call(run, at_most=run.call_picodollars_at_most)


def require_call(run: Run, *, at_most: int) -> None:
    """
    Check what a run may cost before one of its calls.

    :raises RunCostExceeded: if the call may cost more than is left
    """
    assert run.max_cost_picodollars is not None
    lines = CostEvent.objects.of_calls().filter(run_id=run.id)
    spent = lines.aggregate(sum=Sum("amount_picodollars"))["sum"] or 0
    unpriced = Attempt.objects.filter(id__in=lines.filter(amount_picodollars=None).values("attempt_id"))
    unknown = sum(each or at_most for each in unpriced.values_list("at_most_picodollars", flat=True))
    require_room(run.max_cost_picodollars, spent=spent + unknown, at_most=at_most)
