"""Defects that can be planted into workers, to prove that the checks of a chaos run find them."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any


def double_settlement() -> None:
    """
    Settle one call in three twice.

    The database refuses a second charge of an attempt. So this settles as a careless correction would: one more line
    with the same tokens, and with every sum in step. Only the provider knows better.
    """
    from billing.models import CostEvent
    from rensei.core.transactions import durable
    from rensei.dispatch.settlement import settle
    from tests.billing.record import record_adjustment

    write, count = settle.write, itertools.count(1)

    def write_twice(plans: Sequence[settle.SettlementPlan]) -> list[Any]:
        ended = write(plans)
        for plan in plans:
            attempt = plan.attempt
            if attempt is None or not plan.usage.output_tokens or plan.estimated or next(count) % 3:
                continue
            with durable():
                charge = CostEvent.objects.get(attempt_id=attempt.id, kind=CostEvent.Kind.CHARGE)
                record_adjustment(
                    charge=charge,
                    usage=plan.usage + plan.usage,
                    estimated=False,
                    billed=charge.billed,
                    occurred_at=plan.now,
                )
                settle._write_runs([plan.run], ends={}, new=[], late=[])
        return ended

    settle.write = write_twice


def missing_charge() -> None:
    """Leave one charge in three out."""
    from billing.ledger import charges as billing

    record, count = billing.write_charges, itertools.count(1)

    def record_most(charges: Sequence[billing.Charge]) -> list[Any]:
        return record([charge for charge in charges if next(count) % 3])

    billing.write_charges = record_most


PLANTS: dict[str, Callable[[], None]] = {
    "double-settlement": double_settlement,
    "missing-charge": missing_charge,
}
