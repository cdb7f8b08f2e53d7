"""
The most that is charged for what a provider has not reported: the rest of what was held for the call.

What is reported is charged as it is, even above the hold.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from billing.limits.held import held_for
from catalog.pricing import cost
from rensei.core.token_classes import TOKEN_CLASSES
from rensei.core.usage import NOTHING, Usage, UsagePart
from rensei.dispatch.models import Run
from rensei.dispatch.settlement.served import Served, prices_for


def read_holds(calls: Iterable[tuple[Run, Sequence[UsagePart]]]) -> dict[str, int]:
    """
    Read what is held for calls of which something was not reported, by run id. Most calls are reported in full.

    There is nothing for a call that is settled after its run has ended: its hold is released.
    """
    run_ids = [run.id for run, parts in calls if run.is_cost_held and any(part.unreported != NOTHING for part in parts)]
    return held_for(run_ids) if run_ids else {}


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
