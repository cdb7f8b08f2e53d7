"""The lines of a run's usage add up to what the ledger says, whatever was used and by whatever models."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from billing.models import CostEvent
from catalog.pricing import UnitPrices, cost
from rensei.console import usage_lines
from rensei.core.token_classes import COUNTS
from rensei.core.usage import Usage
from rensei.dispatch.models import Run

PRICES = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h", "web_search")
counts = st.fixed_dictionaries({name: st.integers(0, 10**6) for name in COUNTS})
prices = st.fixed_dictionaries({name: st.sampled_from([0, 1_000, 2_500, 4_000_000]) for name in PRICES})


@st.composite
def charges(draw: Any) -> CostEvent:
    used, unit = Usage(**draw(counts)), draw(st.none() | prices)
    event = CostEvent(served_model_id=draw(st.sampled_from(["one", "two", "three"])), **used.as_dict())
    if unit is not None:
        vars(event).update({f"{name}_picodollars": price for name, price in unit.items()})
        event.amount_picodollars = cost(used, UnitPrices(above_prompt_tokens=0, **unit))
    return event


@st.composite
def ledgers(draw: Any) -> list[CostEvent]:
    """Charges, some of which an adjustment takes back at the same prices and counts anew."""
    events = draw(st.lists(charges(), max_size=5))
    for event in list(events):
        if draw(st.booleans()):
            back = CostEvent(served_model_id=event.served_model_id)
            for name in COUNTS:
                setattr(back, name, -getattr(event, name))
            for name in PRICES:
                setattr(back, f"{name}_picodollars", getattr(event, f"{name}_picodollars"))
            if event.amount_picodollars is not None:
                back.amount_picodollars = -event.amount_picodollars
            events += [back, draw(charges())]
    return events


class TestOfLedger:
    @given(ledgers())
    def test_adds_up_to_the_ledger(self, events: list[CostEvent]) -> None:
        lines = usage_lines.of_ledger(events)

        known = [line.amount for line in lines if line.amount is not None]
        assert sum(known) == sum(event.amount_picodollars or 0 for event in events)
        for one in usage_lines.TOKEN_CLASSES:
            shown = sum(line.count for line in lines if line.label == one.label)
            assert shown == sum(getattr(event, one.count) for event in events)

    def test_has_a_line_for_every_class_that_is_priced(self) -> None:
        assert {one.count for one in usage_lines.TOKEN_CLASSES} == set(COUNTS)
        assert {one.price for one in usage_lines.TOKEN_CLASSES} == set(PRICES)

    def test_shows_nothing_where_nothing_was_called(self) -> None:
        assert usage_lines.of_ledger([]) == []


class TestSoFar:
    @given(counts, st.none() | prices)
    def test_adds_up_to_the_cost_so_far(self, used: dict[str, int], unit: dict[str, int] | None) -> None:
        bands = None if unit is None else [{"above_prompt_tokens": 0, **unit}]
        usage = Usage(**used)

        lines = usage_lines.so_far(Run(served_model_id="one", prices=bands), usage)

        if unit is None:
            assert all(line.amount is None for line in lines if line.count)
        else:
            assert sum(line.amount or 0 for line in lines) == cost(usage, UnitPrices.from_dict(bands[0]))
