"""One question to the usage page: a figure, such as cost, by one dimension, such as the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from billing.ledger.capacity import billing_class_of
from billing.ledger.reports import UsageLine, lines_by_day
from catalog.services import visible_entries
from integrations.capacity import CAPACITY
from profiles.services import visible_profiles
from rensei.console.charts import Series
from rensei.console.templatetags.console import count, mode_label, usd
from rensei.core.token_classes import OF_TOKENS
from rensei.dispatch.run_figures import RunFigures, RunSums, run_figures
from rensei.orgs.access import Access
from rensei.orgs.services import people, visible_projects
from rensei.tokens.services import visible_tokens

FIGURES = {"cost": "Cost", "tokens": "Tokens", "runs": "Runs", "errors": "Errors", "latency": "Latency"}
DIMENSIONS = {
    "mode": "Mode", "model": "Model", "profile": "Profile", "project": "Project", "person": "Person", "token": "Token",
}  # fmt: skip
NONE = {
    "model": "No model", "profile": "No profile", "project": "No project", "person": "Person whose account is gone",
    "token": "Without a token, or before this version",
}  # fmt: skip
# The value of each figure, among the sums of some runs.
VALUES = {
    "cost": "known_picodollars",
    "tokens": "tokens",
    "runs": "runs",
    "errors": "errors",
    "latency": "median_milliseconds",
}
# The ledger's roll-ups have these; the others are counted from the runs.
IN_LEDGER = frozenset({"mode", "model", "profile", "project"})
SERIES_MAX = 5
ROWS_MAX = 50
OTHERS = "(others)"
MEDIAN = Series(key="median", label="Median", css="series--1")


@dataclass(frozen=True, kw_only=True)
class Name:
    """
    How a row is named, and the page of the organization that it links to, with its arguments.

    `has_runs`: whether the list of runs can be filtered by it.
    """

    label: str
    page: str = ""
    args: Sequence[str] = ()
    has_runs: bool = True


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: from the ledger, with its calls, or from the runs."""

    key: str
    name: Name
    sums: RunSums
    value: int | None
    calls: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """The answer: the values for the chart by day and series, and the rows of the table, the largest first."""

    figure: str
    by: str
    values: Mapping[tuple[date, str], int]
    # The values of cost omit what has no price. It is counted here.
    unpriced: Mapping[tuple[date, str], int]
    series: Sequence[Series]
    rows: Sequence[Row]
    more: int
    total: int | None
    total_unpriced: int
    is_ledger: bool
    since: date | None

    def write(self, value: int | None) -> str:
        return WRITERS[self.figure](value)

    @property
    def written_total(self) -> str:
        return self.write_with(self.total, self.total_unpriced)

    def write_with(self, value: int | None, unpriced: int) -> str:
        """Write a value with the number of what it omits for lack of a price. Nothing but that is a dash, never 0."""
        if not unpriced:
            return self.write(value)
        return f"{self.write(value or None)} + {unpriced:,} without a price"


def seconds(milliseconds: int | None) -> str:
    return "—" if milliseconds is None else f"{milliseconds / 1000:,.2f} s"


WRITERS: dict[str, Callable[[int | None], str]] = {
    "cost": usd, "tokens": count, "runs": count, "errors": count, "latency": seconds,
}  # fmt: skip


def report(access: Access, *, figure: str, by: str, start: date, end: date) -> Report:
    """Answer for the days from `start` to `end`, both included. Costs and tokens come from the ledger where it can."""
    is_ledger = figure in {"cost", "tokens"} and by in IN_LEDGER
    if is_ledger:
        lines = lines_by_day(access.org, start=start, end=end, group=by)
        found = RunFigures(by={place: _sums_of(line) for place, line in lines.items()})
    else:
        found = run_figures(access.org, start=start, end=end, by=by)
    whole = found.by_key()
    order = sorted(whole, key=lambda key: (-(_value(whole[key], figure) or 0), -whole[key].runs, key))
    names = names_of(access, by, order[:ROWS_MAX])
    rows = [
        Row(
            key=key,
            name=names[key],
            sums=whole[key],
            value=_value(whole[key], figure),
            calls=whole[key].runs if is_ledger else 0,
        )
        for key in order[:ROWS_MAX]
    ]
    series, values, unpriced = _series(figure, by, rows, found.by)
    all_of_it = RunSums()
    for one in whole.values():
        all_of_it.add(one)
    return Report(
        figure=figure,
        by=by,
        values=values,
        unpriced=unpriced,
        series=series,
        rows=rows,
        more=max(0, len(order) - ROWS_MAX),
        total=_value(all_of_it, figure) if whole else None,
        total_unpriced=_unpriced(all_of_it, figure),
        is_ledger=is_ledger,
        since=found.since,
    )


def names_of(access: Access, by: str, keys: Sequence[str]) -> dict[str, Name]:
    """Name the rows, with links to what still exists and may be opened, in at most one query."""
    found: dict[str, Name] = {}
    if by == "mode":
        found = {key: Name(label=mode_label(key)) for key in keys}
    elif by == "model":
        for entry in visible_entries(access).filter(model_id__in=keys):
            args = (entry.provider, entry.model_id)
            found.setdefault(entry.model_id, Name(label=entry.model_id, page="catalog-entry", args=args))
        for provider in CAPACITY.values():
            name = Name(label=f"Sandboxes at {provider.display_name}", page="capacity", has_runs=False)
            found[billing_class_of(provider.id)] = name
    elif by == "profile":
        for profile in visible_profiles(access).filter(public_id__in=keys):
            found[profile.public_id] = Name(label=profile.name, page="profile", args=(profile.public_id,))
    elif by == "project":
        for project in visible_projects(access).filter(slug__in=keys):
            found[project.slug] = Name(label=project.name, page="project-access", args=(project.slug,))
    elif by == "person":
        for person in people([int(key) for key in keys if key]):
            found[str(person.pk)] = Name(label=person.get_full_name(), page="members")
    elif by == "token":
        for token in visible_tokens(access).filter(pk__in=keys):
            found[token.pk] = Name(label=token.name, page="tokens")
    return {key: found.get(key) or Name(label=_unnamed(by, key)) for key in keys}


def _unnamed(by: str, key: str) -> str:
    if not key:
        return NONE[by]
    if by == "person":
        return NONE["person"]
    return "A token that you may not see, or that is gone" if by == "token" else f"{key} (gone)"


def _sums_of(line: UsageLine) -> RunSums:
    tokens = sum(getattr(line, one.count) for one in OF_TOKENS)
    return RunSums(runs=line.calls, unpriced=line.unpriced, tokens=tokens, amount_picodollars=line.amount_picodollars)


def _value(sums: RunSums, figure: str) -> int | None:
    value: int | None = getattr(sums, VALUES[figure])
    return value


def _unpriced(sums: RunSums, figure: str) -> int:
    return sums.unpriced if figure == "cost" else 0


def _series(
    figure: str, by: str, rows: Sequence[Row], sums: Mapping[tuple[date, str], RunSums]
) -> tuple[list[Series], dict[tuple[date, str], int], dict[tuple[date, str], int]]:
    """
    The pieces of the bars: the largest rows, and the rest together. Medians are not added: they have one piece.

    What has no price is counted beside the pieces.
    """
    if figure == "latency":
        days: dict[date, RunSums] = {}
        for (day, _), one in sums.items():
            days.setdefault(day, RunSums()).add(one)
        return [MEDIAN], {(day, "median"): one.median_milliseconds or 0 for day, one in days.items()}, {}
    drawn = [row for row in rows if row.value or _unpriced(row.sums, figure)]
    series = [
        Series(key=row.key, label=row.name.label, css=f"series--{row.key if by == 'mode' else place + 1}")
        for place, row in enumerate(drawn[:SERIES_MAX])
    ]
    if len(drawn) > SERIES_MAX:
        series.append(Series(key=OTHERS, label="Others", css="series--others"))
    keys = {one.key for one in series}
    values: dict[tuple[date, str], int] = {}
    unpriced: dict[tuple[date, str], int] = {}
    for (day, key), one in sums.items():
        place = (day, key if key in keys else OTHERS)
        values[place] = values.get(place, 0) + (_value(one, figure) or 0)
        unpriced[place] = unpriced.get(place, 0) + _unpriced(one, figure)
    return series, values, unpriced
