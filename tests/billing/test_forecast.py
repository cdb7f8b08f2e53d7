"""The forecast of a month: what was spent, and the pace of the last seven whole days for each day that is left."""

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from billing.limits.budget import Budget
from billing.limits.forecast import DAYS_OF_PACE, forecast
from rensei.core.periods import next_month

AMOUNTS = st.integers(min_value=0, max_value=10**16)
DAYS = st.dates(min_value=date(2024, 1, 1), max_value=date(2030, 12, 31))


def budget_of(used: int, limit: int) -> Budget:
    return Budget(used=used, held=0, limit=limit, resets_at=datetime(2026, 12, 1, tzinfo=UTC))


class TestForecast:
    @given(today=DAYS, used=AMOUNTS, limit=AMOUNTS, past=st.lists(AMOUNTS, min_size=7, max_size=7), now=AMOUNTS)
    def test_ends_where_counting_day_by_day_ends(
        self, today: date, used: int, limit: int, past: list[int], now: int
    ) -> None:
        billed = {today - timedelta(days=place + 1): amount for place, amount in enumerate(past)} | {today: now}

        found = forecast(budget_of(used, limit), billed, today=today)

        spent, day, used_up = used, today, today if used >= limit else None
        while (day := day + timedelta(days=1)) < next_month(today.replace(day=1)):
            spent += sum(past) // DAYS_OF_PACE
            if used_up is None and spent >= limit:
                used_up = day
        assert (found.at_month_end, found.used_up_on) == (spent, used_up)

    def test_is_what_was_spent_where_nothing_was_spent_lately(self) -> None:
        found = forecast(budget_of(5, 100), {}, today=date(2026, 11, 10))

        assert (found.each_day, found.at_month_end, found.used_up_on) == (0, 5, None)

    def test_ignores_a_correction_that_lowers_the_days_below_zero(self) -> None:
        assert forecast(budget_of(5, 100), {date(2026, 11, 9): -70}, today=date(2026, 11, 10)).each_day == 0
