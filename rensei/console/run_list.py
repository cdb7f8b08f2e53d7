"""One page of the list of runs: its filters, its order, its sum, and its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any

from django.db.models import (
    Case,
    Count,
    DurationField,
    ExpressionWrapper,
    F,
    FloatField,
    QuerySet,
    TextField,
    Value,
    When,
)
from django.db.models.functions import Cast, Concat
from django.http import QueryDict
from django.utils import timezone

from billing.ledger.reports import days_of
from profiles import services as profiles
from rensei.console.sorting import Sort, sort_of
from rensei.core import periods
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.limits import limit
from rensei.core.whole_numbers import WholeSum
from rensei.dispatch import run_filter, search
from rensei.dispatch.models import Run, RunQuerySet
from rensei.dispatch.queries import visible_runs
from rensei.dispatch.run_filter import READ_AT_ONCE, RunFilter, edge_of
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.models import Org
from rensei.tokens.services import visible_tokens

PAGE_SIZE = 25
NEWER_MAX = 99
PERIODS = {"1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30)}
PERIOD_LABELS = {"1h": "Last hour", "24h": "Last 24 hours", "7d": "Last 7 days", "30d": "Last 30 days"}
CHOICES_MAX = limit(
    200,
    "values",
    what="Values that a filter of the list of runs offers",
    told="the caller: others are asked for in the address",
)
# The filters of the page, by their names in its address, as those of `RunFilter`.
NAMES = {
    "state": "state",
    "mode": "auth_mode",
    "profile": "profile_id",
    "project": "project_id",
    "model": "served_model",
    "member": "member_id",
    "code": "code",
    "token": "token_id",
}
# A cost as a float is exact enough for an order, and SQLite has no integer beyond 2^63.
ORDERS: dict[str, Any] = {
    "cost": Cast("amount_picodollars", FloatField()),
    "took": ExpressionWrapper(F("finished_at") - F("created_at"), output_field=DurationField()),
    "created": F("id"),
}
COLUMNS = {"Cost": "cost", "Took": "took", "Created": "created"}
NEWEST = "-created"


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """The rows of one page, and the queries of the pages around it. `further` leads on where reading has stopped."""

    rows: list[Run]
    newer: str = ""
    older: str = ""
    further: str = ""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How many of the runs that were read match, and their cost. With `more`, there are earlier runs."""

    count: int
    amount: int
    unpriced: int
    more: bool
    read: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A filter that offers values with their labels."""

    name: str
    chosen: str
    offered: Sequence[tuple[str, str]]

    @property
    def label(self) -> str:
        return "API token" if self.name == "token" else self.name.capitalize()

    @property
    def values(self) -> list[tuple[str, str]]:
        """What is offered, with what is chosen even if it is not: its calls may still be listed."""
        is_offered = not self.chosen or any(value == self.chosen for value, _ in self.offered)
        return [*self.offered] if is_offered else [(self.chosen, self.chosen), *self.offered]


class RunList:
    """The list that the query of an address asks for."""

    def __init__(self, access: Access, query: QueryDict) -> None:
        # PostgreSQL stores no text with U+0000, so nothing can match it.
        self.query = {name: str(value).replace("\0", "").strip() for name, value in query.items()}
        self.query.setdefault("day", "")
        self.filter = _filter_of(self.query)
        self.order = self.query.get("sort", "")
        if self.order.removeprefix("-") not in ORDERS:
            self.order = NEWEST
        self._runs = visible_runs(access)
        self._org = access.org

    @cached_property
    def _matching(self) -> RunQuerySet:
        return self.filter.matching(self._runs, org=self._org)

    @cached_property
    def _edge(self) -> str | None:
        return None if self.filter.words else edge_of(self.filter.in_time(self._runs))

    @property
    def runs(self) -> RunQuerySet:
        """The runs that match, of those that are read at once."""
        return self.filter.in_time(self._matching, low=self._edge or "")

    def summary(self) -> Summary:
        sums = self.runs.order_by().aggregate(
            count=Count("id"), priced=Count("amount_picodollars"), amount=WholeSum("amount_picodollars")
        )
        read = search.MATCHES if self.filter.words else READ_AT_ONCE
        return Summary(
            count=sums["count"],
            amount=sums["amount"] or 0,
            unpriced=sums["count"] - sums["priced"],
            more=sums["count"] >= read if self.filter.words else self._edge is not None,
            read=read,
        )

    def page(self) -> RunPage:
        if self.order != NEWEST:
            return self._sorted()
        if after := self.query.get("after"):
            return self._after(after)
        return self._before(self.query.get("before", ""))

    def newer_than(self, run_id: str) -> int:
        """Count the runs that have come since a run, up to a few more than a page says."""
        found = self._beyond(run_id, self.filter.matching(self._runs, org=self._org, since=run_id))
        return len(found.values_list("id", flat=True)[: NEWER_MAX + 1])

    def sorts(self) -> dict[str, Sort]:
        """The headings that sort, by their labels."""
        return {
            label: sort_of(name, self.order, link=lambda order: "?" + self.written(sort=order))
            for label, name in COLUMNS.items()
        }

    def written(self, **changes: str) -> str:
        """Write the query of another page of this list, at its beginning unless a change names a place."""
        kept = {name: value for name, value in self.query.items() if name not in {"before", "after", "page"}}
        query = QueryDict(mutable=True)
        query.update({name: value for name, value in (kept | changes).items() if value})
        return query.urlencode()

    def to_save(self) -> str:
        """Write the filters and the order that count, without a place in the list, for a saved view."""
        days = {name: self.query.get(name, "") for name in ("from", "to", "day")}
        kept = {name: self.query[name] for name, ours in NAMES.items() if ours in self.filter.values}
        kept |= {"q": self.filter.words} | {name: text for name, text in days.items() if day_of(text)}
        if self.query.get("since") in PERIODS:
            kept["since"] = self.query["since"]
        if self.order != NEWEST:
            kept["sort"] = self.order
        query = QueryDict(mutable=True)
        query.update({name: text for name, text in kept.items() if text})
        return query.urlencode()

    def _sorted(self) -> RunPage:
        place = self.query.get("page", "1")
        number = int(place) if place.isascii() and place.isdecimal() and len(place) < 5 else 1
        name, skipped = self.order.removeprefix("-"), max(0, number - 1) * PAGE_SIZE
        field = ORDERS[name]
        first = field.desc(nulls_last=True) if self.order.startswith("-") else field.asc(nulls_last=True)
        rows = self._rows(self.runs, first, "-id", skipped=skipped)
        return RunPage(
            rows=rows[:PAGE_SIZE],
            newer=self.written(page=str(number - 1)) if number > 1 else "",
            older=self.written(page=str(number + 1)) if len(rows) > PAGE_SIZE else "",
        )

    def _before(self, before: str) -> RunPage:
        """Select one page by the ids at its ends, so that new runs never shift it."""
        edge = self._edge
        if before:
            below = self.filter.in_time(self._runs, high=before)
            edge = edge_of(below) if edge and self.filter.narrows else None
        # Without a filter, each run that is read is shown, so the page itself is the bound.
        low = edge if edge and self.filter.narrows else ""
        found = self.filter.in_time(self._matching, low=low, high=before)
        rows = self._rows(found, "-id")
        more, rows = len(rows) > PAGE_SIZE, rows[:PAGE_SIZE]
        return RunPage(
            rows=rows,
            newer=self.written(after=rows[0].id) if before and rows else "",
            older=self.written(before=rows[-1].id) if more else "",
            further=self.written(before=edge) if edge and self.filter.narrows and not more else "",
        )

    def _after(self, after: str) -> RunPage:
        rows = self._rows(self._beyond(after, self._matching), "id")
        more, rows = len(rows) > PAGE_SIZE, rows[:PAGE_SIZE][::-1]
        return RunPage(
            rows=rows,
            newer=self.written(after=rows[0].id) if more else "",
            older=self.written(before=rows[-1].id) if rows else self.written(),
        )

    def _rows(self, found: RunQuerySet, *order: Any, skipped: int = 0) -> list[Run]:
        """
        Load what the table shows of one page, and of one run more.

        The page is selected by its ids first. PostgreSQL joined the prompts of all runs up to a page in the middle.
        """
        ids = found.order_by(*order).values("id")[skipped : skipped + PAGE_SIZE + 1]
        return list(self._runs.filter(id__in=ids).for_table().order_by(*order))

    def _beyond(self, run_id: str, matching: RunQuerySet) -> RunQuerySet:
        """Select the runs that are newer than a run, the oldest first, of those that are read at once."""
        low, edge = run_filter.after(run_id), None
        if self.filter.narrows and not self.filter.words:
            edge = edge_of(self.filter.in_time(self._runs, low=low), newest_first=False)
        high = run_filter.after(edge) if edge else ""
        return self.filter.in_time(matching, low=low, high=high).order_by("id")


def day_of(text: str) -> date | None:
    """The UTC day of a filter. None for another text, which filters nothing."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if day < date.max else None


def _filter_of(query: Mapping[str, str]) -> RunFilter:
    values = {ours: query[name] for name, ours in NAMES.items() if query.get(name)}
    for name, known in (("state", Run.State.values), ("auth_mode", AuthMode.values)):
        if values.get(name) not in known:
            values.pop(name, None)
    if "code" in values:
        values["code"] = values["code"].upper()
    day = query.get("day", "")
    first, last = day_of(query.get("from") or day), day_of(query.get("to") or day)
    start = periods.start_of(first) if first else None
    if start is None and (period := PERIODS.get(query.get("since", ""))):
        start = database_now() - period
    end = periods.start_of(last + timedelta(days=1)) if last else None
    return RunFilter(words=query.get("q", ""), values=values, start=start, end=end)


def filter_choices(access: Access, query: Mapping[str, str]) -> dict[str, Any]:
    """What the filters offer, and what is chosen even if it is no longer offered."""
    return {
        "states": Run.State.choices,
        "modes": [mode.value for mode in AuthMode],
        "periods": PERIOD_LABELS.items(),
        "choices": [
            Choice(name=name, chosen=query.get(name, ""), offered=offered)
            for name, offered in {**_named_choices(access), "model": _models(access.org)}.items()
        ],
    }


def _models(org: Org) -> list[tuple[str, str]]:
    """List the models to which the ledger has calls in the last 90 days."""
    since = timezone.now().date() - timedelta(days=90)
    used = days_of(org, start=since).filter(calls__gt=0).order_by("served_model_id")
    return [(one, one) for one in used.values_list("served_model_id", flat=True).distinct()[:CHOICES_MAX]]


def _named_choices(access: Access) -> dict[str, list[tuple[str, str]]]:
    """List the values and labels of the filters for rows that have names, in one query."""
    person = Case(When(user__name="", then="user__email"), default="user__name", output_field=TextField())
    revoked = Case(When(revoked_at=None, then=Value("")), default=Value(", revoked"))
    token = Concat("name", Value(" (…"), "hint", Value(")"), revoked, output_field=TextField())
    kinds: dict[str, tuple[QuerySet[Any], str, Any]] = {
        "profile": (profiles.visible_profiles(access), "public_id", F("public_id")),
        "project": (orgs.visible_projects(access), "slug", F("name")),
        "member": (orgs.members(access), "pk", person),
        "token": (visible_tokens(access), "pk", token),
    }
    first, *others = (_named(kind, *of_kind) for kind, of_kind in kinds.items())
    choices: dict[str, list[tuple[str, str]]] = {kind: [] for kind in kinds}
    for label, kind, value in sorted(first.union(*others, all=True)):
        choices[kind].append((value, label))
    return choices


def _named(kind: str, rows: QuerySet[Any], value: str, label: Any) -> QuerySet[Any]:
    # SQLite limits no part of a union, but a subquery in it.
    offered = rows.select_related(None).order_by(label, "pk").values("pk")[:CHOICES_MAX]
    columns = (Cast(label, TextField()), Value(kind, TextField()), Cast(value, TextField()))
    named: QuerySet[Any] = rows.model._default_manager.filter(pk__in=offered)  # noqa: SLF001
    return named.order_by().values_list(*columns)
