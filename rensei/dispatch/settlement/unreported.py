"""
The most that is charged for what a provider has not reported: the rest of what was held for the call.

What is reported is charged as it is, even above the hold.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from django.db.models import Sum

from billing.limits.held import held_for
from billing.models import CostEvent
from catalog.pricing import cost
from rensei.core.token_classes import TOKEN_CLASSES
from rensei.core.usage import NOTHING, Usage, UsagePart
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.settlement.served import Served, prices_for


def read_holds(calls: Iterable[tuple[Attempt, Run, Sequence[UsagePart]]]) -> dict[str, int]:
    """
    Read what is held for calls of which something was not reported, by run id. Most calls are reported in full.

    Of a run that its caller has capped, it is what the other calls of the run have left. Otherwise there is nothing for
    a call that is settled after its run has ended: its hold is released.
    """
    found = {
        attempt.id: run
        for attempt, run, parts in calls
        if run.is_cost_held and any(part.unreported != NOTHING for part in parts)
    }
    if not found:
        return {}
    held = held_for({run.id for run in found.values()})
    capped = {run.id: run.max_cost_picodollars for run in found.values() if run.max_cost_picodollars is not None}
    if capped:
        others = CostEvent.objects.of_calls().filter(run_id__in=capped).exclude(attempt_id__in=found)
        spent = dict(others.order_by().values_list("run_id").annotate(Sum("amount_picodollars")))
        for run_id, most in capped.items():
            left = max(0, most - (spent.get(run_id) or 0))
            held[run_id] = min(left, held.get(run_id, left))
    return held


def within_hold(run: Run, parts: Sequence[tuple[Served, UsagePart]], *, hold: int) -> list[tuple[Served, UsagePart]]:
    """Reduce the unreported usage of a call's parts until together they cost no more than the hold."""
    priced = [(served, part, prices_for(run, served, part)[0]) for served, part in parts]
    left = hold - sum(cost(part.usage - part.unreported, prices) for _, part, prices in priced if prices)
    reduced = []
    for served, part, prices in priced:
        if prices is not None:
            fits = {}
            for one in TOKEN_CLASSES:
                count, price = getattr(part.unreported, one.count), getattr(prices, one.price) or 0
                fits[one.count] = min(count, max(0, left) // price) if price else count
                left -= fits[one.count] * price
            part = _with_unreported(part, Usage(**fits))
        reduced.append((served, part))
    return reduced


def _with_unreported(part: UsagePart, unreported: Usage) -> UsagePart:
    usage = part.usage - part.unreported + unreported
    usage = replace(usage, thinking_tokens=min(part.usage.thinking_tokens, usage.output_tokens))
    return replace(part, usage=usage, unreported=unreported)
