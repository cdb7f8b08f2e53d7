"""The ledger added up again, line by line in Python, to compare with what the roll-ups say."""

from collections import defaultdict

from billing.ledger.roll_ups import KEY, SUMS
from billing.models import CostEvent, UsageDaily


def ledger_by_key() -> dict[tuple[object, ...], dict[str, int]]:
    """Add up the whole ledger under the keys of the roll-ups."""
    totals: dict[tuple[object, ...], dict[str, int]] = defaultdict(lambda: dict.fromkeys(SUMS, 0))
    for line in CostEvent.objects.all():
        key = tuple(line.occurred_at.date() if name == "day" else getattr(line, name) for name in KEY)
        sums = totals[key]
        for name in SUMS:
            if name == "calls":
                sums[name] += line.kind == "charge"
            elif name == "unpriced":
                sums[name] += line.amount_picodollars is None
            else:
                sums[name] += getattr(line, name) or 0
    return dict(totals)


def roll_ups_by_key() -> dict[tuple[object, ...], dict[str, int]]:
    """Read the roll-ups in the same shape."""
    return {
        tuple(getattr(row, name) for name in KEY): {name: getattr(row, name) for name in SUMS}
        for row in UsageDaily.objects.all()
    }
