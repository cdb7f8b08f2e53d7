"""Ledger lines without a run, counted as a settlement counts them."""

from collections.abc import Iterable

from billing.ledger import roll_ups
from billing.ledger.charges import Charge, write_charges
from billing.limits import budget
from billing.models import CostEvent


def record_charges(charges: Iterable[Charge]) -> list[CostEvent]:
    """Write one line for each call, and count it, in the caller's transaction."""
    lines = write_charges(charges)
    budget.add_billed(lines)
    roll_ups.add(lines)
    return lines
