"""Filters of runs, which pages, REST and the command share, and the part of a long list that one page reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rensei.core.ids import first_id_of
from rensei.core.limits import limit
from rensei.dispatch import search
from rensei.dispatch.models import RunQuerySet
from rensei.orgs.models import Membership, Org

READ_AT_ONCE = limit(
    10_000,
    "runs of the organization, the newest of the time that is asked for",
    what="List of runs: what a filter, and on a page a sort, a sum and a CSV file read at once",
    told="the caller: a link to go on from there, `next` in REST; the page says how far it has read",
)

# Ids of runs: before the first, and after those of the next 7,000 years.
FIRST, LAST = "run_", "run_" + 26 * "z"

# Each filter, and the look-up that it is. A member is looked up in the organization first.
LOOKUPS = {
    "state": "state",
    "auth_mode": "auth_mode",
    "profile_id": "profile_id",
    "project_id": "project__slug",
    "served_model": "served_model_id",
    "member_id": "created_by__in",
    "code": "error__code",
    "token_id": "token_id",
}


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """What a list of runs is narrowed to: the words of a search, `LOOKUPS` by name, and a time."""

    words: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    start: datetime | None = None
    end: datetime | None = None

    def __bool__(self) -> bool:
        return bool(self.words or self.values or self.start or self.end)

    @property
    def narrows(self) -> bool:
        """Return whether a run of the time may be left out."""
        return bool(self.words or self.values)

    def in_time(self, runs: RunQuerySet, *, low: str = "", high: str = "") -> RunQuerySet:
        """
        Select the runs of the time, whose ids sort by it, from an id on and before another one.

        Each end is one condition: of two on one column SQLite takes the first for its index, whichever reads less.
        """
        low, high = max(self.first, low), min(self.beyond, high or LAST)
        if low > FIRST:
            runs = runs.filter(id__gte=low)
        return runs.filter(id__lt=high) if high < LAST else runs

    def matching(self, runs: RunQuerySet, *, org: Org, since: str = "") -> RunQuerySet:
        """Select the runs of an organization that match all but the time, from a run id on. Words are searched now."""
        values: dict[str, Any] = dict(self.values)
        if "member_id" in values:
            values["member_id"] = Membership.objects.for_org(org).filter(pk=values["member_id"]).values("user_id")
        found = runs.filter(**{LOOKUPS[name]: value for name, value in values.items()})
        if self.words:
            first = max(self.first, since)
            found = found.filter(search.matching(org, self.words, first=first, beyond=self.beyond))
        return found

    @property
    def first(self) -> str:
        return first_id_of("run", self.start) if self.start else FIRST

    @property
    def beyond(self) -> str:
        return first_id_of("run", self.end) if self.end else LAST


def edge_of(runs: RunQuerySet, *, newest_first: bool = True) -> str | None:
    """Return the id of the last run that is read at once; None if there are no more beyond it."""
    ids = runs.order_by("-id" if newest_first else "id").values_list("id", flat=True)
    around = list(ids[READ_AT_ONCE - 1 : READ_AT_ONCE + 1])
    return around[0] if len(around) == 2 else None


def after(run_id: str) -> str:
    """Return the lowest id that is above a run's: all ids have the same length."""
    return run_id + "0"
