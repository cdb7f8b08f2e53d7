"""The chart of a phone has every amount of the chart of a desk, and cards are within their chart."""

import random
from datetime import date, timedelta

import pytest

from rensei.console import charts
from rensei.console.charts import Series

KEYS = [Series(key=key, label=key * 5, css=f"series--{key}") for key in ("byok", "metered", "shared")]


def amounts_of(chance: random.Random, days: list[date]) -> dict[tuple[date, str], int]:
    return {(day, one.key): chance.randint(0, 10**12) for day in days for one in KEYS if chance.random() < 0.7}


@pytest.mark.parametrize("length", [7, 14, 15, 30, 90])
@pytest.mark.parametrize("seed", range(5))
class TestCharts:
    def test_weeks_add_up_to_the_days(self, length: int, seed: int) -> None:
        today = date(2026, 11, 29)
        days = [today - timedelta(days=length - 1 - place) for place in range(length)]
        amounts = amounts_of(random.Random(seed), days)

        wide = charts.stacked(days, amounts, KEYS, write=str)
        narrow = charts.narrow(days, amounts, KEYS, write=str, adds=True)

        assert sum(bar.amount for bar in wide.bars) == sum(bar.amount for bar in narrow.bars) == sum(amounts.values())
        assert len({bar.x for bar in narrow.bars}) <= charts.NARROW_BARS_MAX
        assert bool(narrow.span) is (length > charts.NARROW_BARS_MAX)
        for chart in (wide, narrow):
            for bar in chart.bars:
                assert charts.LEFT <= bar.x <= bar.x + bar.width <= chart.width
            for card in chart.cards:
                assert 0 <= card.x <= card.x + charts.CARD_WIDTH <= chart.width
                assert card.lines[-1].y <= card.height

    def test_values_that_do_not_add_up_are_those_of_the_last_days(self, length: int, seed: int) -> None:
        days = [date(2026, 11, 29) - timedelta(days=length - 1 - place) for place in range(length)]
        amounts = amounts_of(random.Random(seed), days)

        narrow = charts.narrow(days, amounts, KEYS, write=str, adds=False)

        assert narrow.span == ""
        assert {(bar.day, bar.amount) for bar in narrow.bars} == {
            (day, amount) for (day, _), amount in amounts.items() if amount and day in days[-charts.NARROW_BARS_MAX :]
        }

    def test_a_card_has_the_values_of_its_day_and_their_sum(self, length: int, seed: int) -> None:
        days = [date(2026, 11, 29) - timedelta(days=length - 1 - place) for place in range(length)]
        amounts = amounts_of(random.Random(seed), days)

        for card in charts.stacked(days, amounts, KEYS, write=str).cards:
            texts = [int(line.text) for line in card.lines]
            values = [amounts.get((card.day, one.key), 0) for one in KEYS]
            assert sum(values) == texts[-1]
            assert sorted(filter(None, values)) == sorted(texts[:-1] if len(texts) > 1 else texts)
