"""One page of the list of runs: its filters, its order, its sum, and its rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any

from django.db.models import Count, DurationField, ExpressionWrapper, F, FloatField
from django.db.models.functions import Cast
from django.http import QueryDict
from django.utils import timezone

from billing.models import UsageDaily
from profiles import services as profiles
from rensei.console.sorting import Sort, sort_of
from rensei.core import periods
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.limits import limit
from rensei.core.whole_numbers import WholeSum
from rensei.dispatch import search
from rensei.dispatch.models import Run, RunQuerySet
from rensei.dispatch.run_filter import READ_AT_ONCE, RunFilter, edge_of, up_to
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.models import Membership, Org
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


class RunList:
    """The list that the query of an address asks for."""

    def __init__(self, org: Org, query: QueryDict) -> None:
        # PostgreSQL stores no text with U+0000, so nothing can match it.
        self.query = {name: str(value).replace("\0", "").strip() for name, value in query.items()}
        self.query.setdefault("day", "")
        self.filter = _filter_of(self.query)
        self.order = self.query.get("sort", "")
        if self.order.removeprefix("-") not in ORDERS:
            self.order = NEWEST
        self._runs = Run.objects.for_org(org)
        self._in_time = self.filter.in_time(self._runs)
        self._org = org

    @cached_property
    def _found(self) -> RunQuerySet:
        return self.filter.of(self._runs, org=self._org)

    @cached_property
    def _edge(self) -> str | None:
        return None if self.filter.words else edge_of(self._in_time)

    @property
    def found(self) -> RunQuerySet:
        """The runs that match, of those that are read at once."""
        return up_to(self._found, self._edge)

    def summary(self) -> Summary:
        sums = self.found.order_by().aggregate(
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
        found = self._beyond(run_id, self.filter.of(self._runs, org=self._org, since=run_id))
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
        rows = list(self.found.for_table().order_by(first, "-id")[skipped : skipped + PAGE_SIZE + 1])
        return RunPage(
            rows=rows[:PAGE_SIZE],
            newer=self.written(page=str(number - 1)) if number > 1 else "",
            older=self.written(page=str(number + 1)) if len(rows) > PAGE_SIZE else "",
        )

    def _before(self, before: str) -> RunPage:
        """Select one page by the ids at its ends, so that new runs never shift it."""
        found, edge = self._found, self._edge
        if before:
            found = found.filter(id__lt=before)
            edge = edge_of(self._in_time.filter(id__lt=before)) if edge and self.filter.narrows else None
        # Without a filter, each run that is read is shown, so the page itself is the bound.
        rows = list(up_to(found, edge if self.filter.narrows else None).for_table().order_by("-id")[: PAGE_SIZE + 1])
        more, rows = len(rows) > PAGE_SIZE, rows[:PAGE_SIZE]
        return RunPage(
            rows=rows,
            newer=self.written(after=rows[0].id) if before and rows else "",
            older=self.written(before=rows[-1].id) if more else "",
            further=self.written(before=edge) if edge and self.filter.narrows and not more else "",
        )

    def _after(self, after: str) -> RunPage:
        rows = list(self._beyond(after, self._found).for_table()[: PAGE_SIZE + 1])
        more, rows = len(rows) > PAGE_SIZE, rows[:PAGE_SIZE][::-1]
        return RunPage(
            rows=rows,
            newer=self.written(after=rows[0].id) if more else "",
            older=self.written(before=rows[-1].id) if rows else self.written(),
        )

    def _beyond(self, run_id: str, found: RunQuerySet) -> RunQuerySet:
        """Select the runs that are newer than a run, the oldest first, of those that are read at once."""
        found = found.filter(id__gt=run_id).order_by("id")
        if not self.filter.narrows or self.filter.words:
            return found
        return up_to(found, edge_of(self._in_time.filter(id__gt=run_id), newest_first=False), newest_first=False)


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


def filter_choices(access: Access) -> dict[str, Any]:
    """What the filters offer. A model is offered while the ledger has calls to it in the last 90 days."""
    org = access.org
    since = timezone.now().date() - timedelta(days=90)
    used = UsageDaily.objects.for_org(org).filter(day__gte=since).order_by("served_model_id")
    members = Membership.objects.for_org(org).select_related("user").order_by("user__name", "id")
    return {
        "states": Run.State.choices,
        "modes": [mode.value for mode in AuthMode],
        "periods": PERIOD_LABELS.items(),
        "projects": orgs.visible_projects(access).order_by("name")[:CHOICES_MAX],
        "profile_ids": profiles.visible_profiles(access).order_by("public_id").values_list("public_id", flat=True),
        "models": used.values_list("served_model_id", flat=True).distinct()[:CHOICES_MAX],
        "members": members[:CHOICES_MAX],
        "tokens": visible_tokens(access).order_by("name", "pk")[:CHOICES_MAX],
    }
