"""Writing ledger lines: charges and their corrections."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter

from billing.models import CALL_COLUMNS, CostEvent
from catalog.pricing import UnitPrices, cost
from rensei.core.auth_modes import AuthMode, Payer
from rensei.core.bulk import insert_all
from rensei.core.instances import made_like
from rensei.core.token_classes import TOKEN_CLASSES
from rensei.core.transactions import assert_open
from rensei.core.usage import Usage

_BLANK = CostEvent()
_call_columns = attrgetter(*CALL_COLUMNS)
_prices = attrgetter(*(one.price for one in TOKEN_CLASSES))
_PRICE_COLUMNS = tuple(one.column for one in TOKEN_CLASSES)


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One call to a provider, as the ledger records it. `prices` are frozen at dispatch; None: unpriced."""

    org_id: str
    run_id: str
    attempt_id: str
    profile_id: str
    project_id: str
    auth_mode: AuthMode
    payer: Payer
    billing_class: str
    pool_id: str
    credential_id: str
    provider: str
    model_id: str
    served_model_id: str
    provider_request_id: str
    usage: Usage
    prices: UnitPrices | None
    billed: bool
    estimated: bool
    occurred_at: datetime


def write_charges(charges: Iterable[Charge]) -> list[CostEvent]:
    """
    Write one ledger line for each call, in the caller's transaction.

    The caller adds the lines to the month's use, to the shared spending and to the roll-ups, at the end of its
    transaction: an organization has one row of each, and until the commit all its other settlements wait for them.

    The caller guards each attempt by a conditional UPDATE of its state. A second charge of an attempt in spite
    of it is a bug: the unique constraint raises IntegrityError, and the caller's transaction is rolled back.
    """
    assert_open()
    lines = [_charge_line(charge) for charge in charges]
    insert_all(CostEvent, lines)
    return lines


def write_adjustment(
    *,
    charge: CostEvent,
    usage: Usage,
    estimated: bool,
    billed: bool,
    occurred_at: datetime,
    prices: UnitPrices | None = None,
) -> list[CostEvent]:
    """
    Correct a charge to `usage` by a signed line at the charge's own prices, in the caller's transaction.

    As with charges, the caller counts the lines at the end of its transaction.

    Afterwards, the charge and its adjustments add up to `usage`. What they bill adds up to their whole amount if
    `billed`, to nothing if not: an estimate that is not billed yet is billed in full at settlement.
    If the real prompt is in another price band than the estimated one, `prices` holds that band: an additional
    line then reverses the amount at the wrong prices. The caller ensures that only one settlement of the attempt
    calls this function. The last of the lines is the one at the final prices.
    """
    assert_open()
    written = [charge, *CostEvent.objects.filter(adjusts=charge)]
    standing = _usage_by_prices(written)
    final = prices_of(charge) if prices is None else replace(prices, above_prompt_tokens=0)

    line = _adjustment_line(charge, usage=usage - standing.pop(final, Usage()), prices=final)
    taken_back = [
        _adjustment_line(charge, usage=Usage() - wrong, prices=wrong_prices)
        for wrong_prices, wrong in standing.items()
        if wrong != Usage()
    ]
    lines = [*taken_back, line]
    for each in lines:
        each.billed, each.estimated, each.occurred_at = billed, estimated, occurred_at
    owed = sum(each.amount_picodollars or 0 for each in [*written, *lines]) if billed else 0
    line.billed_picodollars = owed - sum(each.billed_picodollars for each in written)
    CostEvent.objects.bulk_create(lines)
    return lines


def _charge_line(charge: Charge) -> CostEvent:
    line = made_like(
        _BLANK,
        kind=CostEvent.Kind.CHARGE,
        billed=charge.billed,
        estimated=charge.estimated,
        occurred_at=charge.occurred_at,
        **dict(zip(CALL_COLUMNS, _call_columns(charge), strict=True)),
    )
    _fill(line, usage=charge.usage, prices=charge.prices)
    line.billed_picodollars = (line.amount_picodollars or 0) if charge.billed else 0
    return line


def _fill(line: CostEvent, *, usage: Usage, prices: UnitPrices | None) -> None:
    vars(line).update(usage.as_dict())
    if prices is None or (prices.web_search is None and usage.web_search_requests):
        return
    vars(line).update(zip(_PRICE_COLUMNS, _prices(prices), strict=True))
    line.amount_picodollars = cost(usage, prices)


def _adjustment_line(charge: CostEvent, *, usage: Usage, prices: UnitPrices | None) -> CostEvent:
    line = CostEvent(
        kind=CostEvent.Kind.ADJUSTMENT, adjusts=charge, **{name: getattr(charge, name) for name in CALL_COLUMNS}
    )
    _fill(line, usage=usage, prices=prices)
    return line


def _usage_by_prices(lines: Iterable[CostEvent]) -> dict[UnitPrices | None, Usage]:
    totals: dict[UnitPrices | None, Usage] = {}
    for line in lines:
        prices = prices_of(line)
        totals[prices] = totals.get(prices, Usage()) + Usage.of(line)
    return totals


def prices_of(line: CostEvent) -> UnitPrices | None:
    """The frozen prices of a line. The ledger does not store a band's threshold, so it is always 0."""
    if line.amount_picodollars is None:
        return None
    return UnitPrices(above_prompt_tokens=0, **{one.price: getattr(line, one.column) for one in TOKEN_CLASSES})
