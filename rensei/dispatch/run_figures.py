"""
Figures that only the runs have: how many there were, who dispatched them, how they ended, and how long they took.

They are counted from the newest runs of a period, up to a limit, so that the work does not grow with the number of
runs. Amounts that have to be complete come from the ledger.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from statistics import median, quantiles
from typing import Any

from django.db.models import BigIntegerField, Case, Func, When

from rensei.core.ids import first_id_of
from rensei.core.limits import limit
from rensei.core.periods import start_of
from rensei.core.token_classes import OF_TOKENS
from rensei.dispatch.models import Run
from rensei.orgs.models import Org

RUNS_COUNTED_MAX = limit(
    10_000,
    "runs of the organization, the newest of the period",
    what="Usage by runs, persons and tokens on a page: what is counted",
    told="the caller: the page says since which day it counts",
)
# The column of each dimension.
COLUMNS = {
    "mode": "auth_mode",
    "model": "served_model_id",
    "profile": "profile_id",
    "project": "project__slug",
    "person": "created_by",
    "token": "token_id",
}
COUNTS = tuple(one.count for one in OF_TOKENS)
TENTHS_OF_HALF = 20


@dataclass(kw_only=True)
class RunSums:
    """
    The sums of some runs. `milliseconds` has the duration of each that succeeded, from dispatch to end.

    `unpriced` counts those that used tokens and have no amount. `amount_picodollars` omits them.
    """

    runs: int = 0
    unpriced: int = 0
    errors: int = 0
    tokens: int = 0
    amount_picodollars: int = 0
    milliseconds: list[int] = field(default_factory=list)

    @property
    def known_picodollars(self) -> int | None:
        """The sum of the priced ones; None where there is nothing but unpriced ones: unknown is never 0."""
        return None if self.unpriced and not self.amount_picodollars else self.amount_picodollars

    @property
    def median_milliseconds(self) -> int | None:
        return round(median(self.milliseconds)) if self.milliseconds else None

    @property
    def slow_milliseconds(self) -> int | None:
        """The 95th percentile: one of twenty runs took longer."""
        if len(self.milliseconds) < 2:
            return self.median_milliseconds
        return round(quantiles(self.milliseconds, n=TENTHS_OF_HALF, method="inclusive")[-1])

    def add(self, other: "RunSums") -> None:
        self.runs += other.runs
        self.unpriced += other.unpriced
        self.errors += other.errors
        self.tokens += other.tokens
        self.amount_picodollars += other.amount_picodollars
        self.milliseconds += other.milliseconds


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """The sums by UTC day of the dispatch and key. `since` is the first day counted, if some runs were not."""

    by: Mapping[tuple[date, str], RunSums]
    since: date | None = None

    def by_key(self) -> dict[str, RunSums]:
        """Add up the days."""
        whole: dict[str, RunSums] = {}
        for (_, key), one in self.by.items():
            whole.setdefault(key, RunSums()).add(one)
        return whole


class _Milliseconds(Func):
    """The time between two moments, as a number: a moment takes Python much longer to read, 10,000 times over."""

    template = "ROUND(EXTRACT(EPOCH FROM (%(expressions)s)) * 1000)::bigint"
    arg_joiner = " - "
    output_field = BigIntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        template = "CAST(ROUND((JULIANDAY(%(expressions)s)) * 86400000) AS INTEGER)"
        return self.as_sql(compiler, connection, template=template, arg_joiner=") - JULIANDAY(", **context)


def run_figures(org: Org, *, start: date, end: date, by: str) -> RunFigures:
    """Count the runs dispatched from `start` to `end`, both included, by one of `COLUMNS`, in one query."""
    days = [start + timedelta(days=number) for number in range((end - start).days + 2)]
    # The ids of runs sort by the time of their dispatch.
    firsts = [first_id_of("run", start_of(day)) for day in days]
    found = Run.objects.for_org(org).filter(id__gte=firsts[0], id__lt=firsts[-1]).order_by("-id")
    took = Case(When(state=Run.State.SUCCEEDED, then=_Milliseconds("finished_at", "created_at")))
    rows = list(
        found.values_list("id", COLUMNS[by], "state", took, "amount_picodollars", "usage")[: RUNS_COUNTED_MAX + 1]
    )
    sums: dict[tuple[date, str], RunSums] = {}
    for run_id, key, state, milliseconds, amount, usage in rows[:RUNS_COUNTED_MAX]:
        day = days[bisect_right(firsts, run_id) - 1]
        one = sums.setdefault((day, str(key or "")), RunSums())
        one.runs += 1
        one.errors += state == Run.State.FAILED
        tokens = sum(usage.get(name, 0) for name in COUNTS)
        one.tokens += tokens
        one.unpriced += amount is None and tokens > 0
        one.amount_picodollars += amount or 0
        if milliseconds is not None:
            one.milliseconds.append(milliseconds)
    left_out = len(rows) > RUNS_COUNTED_MAX
    return RunFigures(by=sums, since=min(day for day, _ in sums) if left_out else None)
