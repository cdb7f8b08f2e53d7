"""An organization's usage and costs, read from the roll-ups."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Self

from billing.ledger.capacity import CLASS_BEGINNING
from billing.ledger.roll_ups import SUMS
from billing.limits.quota import SharedQuota, shared_quota
from billing.models import CostEvent, UsageDaily
from rensei.orgs.access import Access
from rensei.orgs.models import Org, OrgScopedQuerySet, Project

__all__ = [
    "CAPACITY",
    "GROUPS",
    "SharedQuota",
    "UsageLine",
    "calls_of_month",
    "days_of",
    "lines_by_day",
    "month_to_date",
    "shared_quota",
    "total",
    "usage_by",
    "usage_by_each",
]

GROUPS = {
    "day": "day",
    "model": "served_model_id",
    "mode": "auth_mode",
    "project": "project_id",
    "profile": "profile_id",
}

# The key of sandboxes in clouds beside the auth modes, whose calls they are not.
CAPACITY = "capacity"


@dataclass(frozen=True, kw_only=True)
class UsageLine:
    """
    The use of one day, model, mode, project or profile, or the total.

    `calls` are provider calls. `unpriced` counts the ledger lines without an amount.
    """

    key: str
    calls: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    web_search_requests: int = 0
    amount_picodollars: int = 0
    billed_picodollars: int = 0

    @property
    def known_picodollars(self) -> int | None:
        """The sum of the priced lines. None where no line has a price: unknown is never 0."""
        nothing_priced = self.unpriced >= max(self.calls, 1)
        return None if nothing_priced and self.amount_picodollars == 0 else self.amount_picodollars

    def __add__(self, other: Self) -> "UsageLine":
        return UsageLine(key=self.key, **{name: getattr(self, name) + getattr(other, name) for name in SUMS})


def usage_by(org: Org, *, start: date, end: date, group_by: str, project: Project | None = None) -> list[UsageLine]:
    """
    Sum the days from `start` to `end`, both included, by one of `GROUPS`.

    Days are in order; other groups are sorted by cost, highest first. A `project` limits the sums to it.
    """
    return usage_by_each(org, start=start, end=end, groups=[group_by], project=project)[group_by]


def usage_by_each(
    org: Org, *, start: date, end: date, groups: Sequence[str], project: Project | None = None
) -> dict[str, list[UsageLine]]:
    """Sum by several of `GROUPS`, reading the roll-ups once."""
    columns = {group: GROUPS[group] for group in groups}
    rows = days_of(org, start=start).filter(day__lte=end)
    if project is not None:
        rows = rows.filter(project_id=project.slug)
    lines: dict[str, dict[str, UsageLine]] = {group: {} for group in groups}
    # Added here and not by the database: SQLite has no integers beyond 2^63.
    for row in rows.values(*columns.values(), *SUMS).iterator(chunk_size=2000):
        sums = {name: row[name] for name in SUMS}
        for group, column in columns.items():
            key = str(row[column])
            line = UsageLine(key=key, **sums)
            lines[group][key] = lines[group][key] + line if key in lines[group] else line
    return {group: _in_order(group, lines[group].values()) for group in groups}


def lines_by_day(org: Org, *, start: date, end: date, group: str) -> dict[tuple[date, str], UsageLine]:
    """Sum an organization's roll-ups by day and one of `GROUPS`."""
    rows = days_of(org, start=start).filter(day__lte=end)
    column = GROUPS[group]
    lines: dict[tuple[date, str], UsageLine] = {}
    for row in rows.values("day", column, *SUMS).iterator(chunk_size=2000):
        place = (row["day"], str(row[column]))
        line = UsageLine(key=place[1], **{name: row[name] for name in SUMS})
        lines[place] = lines[place] + line if place in lines else line
    return lines


def days_of(org: Org, *, start: date) -> OrgScopedQuerySet[UsageDaily]:
    """List the roll-ups of an organization since a day."""
    return UsageDaily.objects.for_org(org).filter(day__gte=start)


def total(lines: Iterable[UsageLine]) -> UsageLine:
    """Add up lines."""
    return sum(lines, start=UsageLine(key="total"))


def month_to_date(org: Org, now: datetime, *, project: Project | None = None) -> UsageLine:
    """Sum the current UTC month up to today."""
    today = now.astimezone(UTC).date()
    return total(usage_by(org, start=today.replace(day=1), end=today, group_by="mode", project=project))


def calls_of_month(org: Org, now: datetime) -> dict[str, UsageLine]:
    """Sum the calls of the current UTC month for each auth mode, and its sandboxes in clouds as `CAPACITY`."""
    today = now.astimezone(UTC).date()
    lines: dict[str, UsageLine] = {}
    rows = days_of(org, start=today.replace(day=1)).filter(day__lte=today)
    for row in rows.values("auth_mode", "served_model_id", *SUMS).iterator(chunk_size=2000):
        key = CAPACITY if row["served_model_id"].startswith(CLASS_BEGINNING) else str(row["auth_mode"])
        line = UsageLine(key=key, **{name: row[name] for name in SUMS})
        lines[key] = lines[key] + line if key in lines else line
    return lines


def _in_order(group: str, lines: Iterable[UsageLine]) -> list[UsageLine]:
    if group == "day":
        return sorted(lines, key=lambda line: line.key)
    return sorted(lines, key=lambda line: (-line.amount_picodollars, -line.calls, line.key))


def visible_lines(access: Access) -> OrgScopedQuerySet[CostEvent]:
    """List the ledger lines that a caller may read. An API token of one project reads only its project's."""
    lines = CostEvent.objects.for_org(access.org)
    return lines if access.project is None else lines.filter(project_id=access.project.slug)
