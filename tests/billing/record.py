"""Ledger lines without a run, counted as a settlement counts them."""

from collections.abc import Iterable
from typing import Any

from billing.ledger import roll_ups
from billing.ledger.charges import Charge, write_adjustment, write_charges
from billing.limits import budget
from billing.models import CostEvent


def record_charges(charges: Iterable[Charge]) -> list[CostEvent]:
    """Write one line for each call, and count it, in the caller's transaction."""
    return _counted(write_charges(charges))


def record_adjustment(**correction: Any) -> CostEvent:
    """Correct a charge, and count the correction. Returns the line at the final prices."""
    return _counted(write_adjustment(**correction))[-1]


def _counted(lines: list[CostEvent]) -> list[CostEvent]:
    budget.add_billed(lines)
    roll_ups.add(lines)
    return lines
