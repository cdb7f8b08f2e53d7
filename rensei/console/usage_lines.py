"""The lines of a run's usage: each class of each model's tokens with price and amount. They add up to the total."""

from collections.abc import Iterable
from dataclasses import dataclass

from billing.models import CostEvent
from catalog import pricing
from catalog.pricing import UnitPrices
from rensei.core.token_classes import TOKEN_CLASSES, WEB_SEARCHES, TokenClass
from rensei.core.usage import Usage
from rensei.dispatch.models import Run

SHOWN_AT_ZERO = ("Input", "Output")


@dataclass(frozen=True)
class Line:
    """`price` is in picodollars for each, and `amount` in picodollars; None where unpriced."""

    model: str
    label: str
    count: int
    price: int | None
    amount: int | None
    is_each: bool


def of_ledger(events: Iterable[CostEvent]) -> list[Line]:
    """Return the lines of a run that has ended. Adjustments are added to their charges; a 0 is omitted."""
    counts: dict[tuple[str, TokenClass, int | None], int] = {}
    for event in events:
        for one in TOKEN_CLASSES:
            price = None if event.amount_picodollars is None else getattr(event, one.column)
            key = (event.served_model_id, one, price)
            counts[key] = counts.get(key, 0) + getattr(event, one.count)
    lines = [_line(model, one, count, price) for (model, one, price), count in counts.items()]
    return [line for line in lines if line.count or (line.label in SHOWN_AT_ZERO and line.model == lines[0].model)]


def so_far(run: Run, usage: Usage) -> list[Line]:
    """Return the lines of a run under way, at the prices of its admission."""
    bands = [UnitPrices.from_dict(band) for band in run.prices or []]
    prices = pricing.band_for(bands, prompt_tokens=usage.prompt_tokens) if bands else None
    return [
        _line(run.served_model_id, one, getattr(usage, one.count), getattr(prices, one.price) if prices else None)
        for one in TOKEN_CLASSES
        if getattr(usage, one.count) or one.label in SHOWN_AT_ZERO
    ]


def _line(model: str, one: TokenClass, count: int, price: int | None) -> Line:
    amount = 0 if not count and price is None else None if price is None else count * price
    return Line(model, one.label, count, price, amount, is_each=one == WEB_SEARCHES)
