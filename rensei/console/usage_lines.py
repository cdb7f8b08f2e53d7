"""The lines of a run's usage: each class of each model's tokens with price and amount. They add up to the total."""

from collections.abc import Iterable
from dataclasses import dataclass

from billing.models import CostEvent
from catalog import pricing
from catalog.pricing import UnitPrices
from rensei.core.usage import Usage
from rensei.dispatch.models import Run


@dataclass(frozen=True)
class Class:
    """A class of tokens, or of requests with a price each: its label and its fields in `Usage` and prices."""

    label: str
    count: str
    price: str


CLASSES = [
    Class("Input", "input_tokens", "input"),
    Class("Output", "output_tokens", "output"),
    Class("Cache read", "cache_read_tokens", "cache_read"),
    Class("Cache write, 5 minutes", "cache_write_5m_tokens", "cache_write_5m"),
    Class("Cache write, 1 hour", "cache_write_1h_tokens", "cache_write_1h"),
    Class("Web searches", "web_search_requests", "web_search"),
]
SHOWN_AT_ZERO = ("Input", "Output")
PRICED_EACH = "Web searches"


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
    counts: dict[tuple[str, Class, int | None], int] = {}
    for event in events:
        for one in CLASSES:
            price = None if event.amount_picodollars is None else getattr(event, f"{one.price}_picodollars")
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
        for one in CLASSES
        if getattr(usage, one.count) or one.label in SHOWN_AT_ZERO
    ]


def _line(model: str, one: Class, count: int, price: int | None) -> Line:
    amount = 0 if not count and price is None else None if price is None else count * price
    return Line(model, one.label, count, price, amount, is_each=one.label == PRICED_EACH)
