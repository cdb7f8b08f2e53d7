"""Where a month's metered spending would end, if it went on as in the last days. Only shown: it decides nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from billing.limits.budget import Budget
from rensei.core.periods import next_month

DAYS_OF_PACE = 7


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """In picodollars. `each_day` is the average of the last whole days; `used_up_on` is None if the budget lasts."""

    each_day: int
    at_month_end: int
    used_up_on: date | None


def forecast(budget: Budget, billed: Mapping[date, int], *, today: date) -> Forecast:
    """
    Add the average of the last seven whole UTC days for each day of the month after today.

    `billed` holds what metered runs cost on each day; a day that is missing cost nothing.
    """
    past = (today - timedelta(days=place) for place in range(1, DAYS_OF_PACE + 1))
    each_day = max(0, sum(billed.get(day, 0) for day in past) // DAYS_OF_PACE)
    days_left = (next_month(today.replace(day=1)) - today).days - 1
    left = budget.limit - budget.used
    used_up_on = None
    if left <= 0:
        used_up_on = today
    elif each_day and left <= each_day * days_left:
        used_up_on = today + timedelta(days=-(-left // each_day))
    return Forecast(each_day=each_day, at_month_end=budget.used + each_day * days_left, used_up_on=used_up_on)
