"""The chart of a phone has every amount of the chart of a desk."""

import random
from datetime import date, timedelta

import pytest

from rensei.console import charts

KEYS = ["byok", "metered", "shared"]


@pytest.mark.parametrize("length", [7, 14, 15, 30, 90])
@pytest.mark.parametrize("seed", range(5))
def test_weeks_add_up_to_the_days(length: int, seed: int) -> None:
    chance = random.Random(seed)
    today = date(2026, 11, 29)
    days = [today - timedelta(days=length - 1 - place) for place in range(length)]
    amounts = {(day, key): chance.randint(0, 10**12) for day in days for key in KEYS if chance.random() < 0.7}

    wide, narrow = charts.stacked(days, amounts, KEYS), charts.narrow(days, amounts, KEYS)

    assert sum(bar.amount for bar in wide.bars) == sum(bar.amount for bar in narrow.bars) == sum(amounts.values())
    assert len({bar.x for bar in narrow.bars}) <= charts.NARROW_BARS_MAX
    assert bool(narrow.span) is (length > charts.NARROW_BARS_MAX)
    for bar in narrow.bars:
        assert charts.LEFT <= bar.x <= bar.x + bar.width <= narrow.width
