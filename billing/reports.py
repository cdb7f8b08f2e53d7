"""What an organization used and what it cost, read from the roll-ups."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Self

from billing.models import UsageDaily
from billing.quota import SharedQuota, shared_quota
from billing.roll_ups import SUMS
from rensei.orgs.models import Org, Project

__all__ = ["GROUPS", "SharedQuota", "UsageLine", "month_to_date", "shared_quota", "total", "usage_by"]

GROUPS = {
    "day": "day",
    "model": "served_model_id",
    "mode": "auth_mode",
    "project": "project_id",
    "profile": "profile_id",
}


@dataclass(frozen=True, kw_only=True)
class UsageLine:
    """
    The use of one day, model, mode, project or profile, or of all of them together.

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
        """What the priced lines cost together. None where no line has a price: unknown is never 0."""
        nothing_priced = self.unpriced >= max(self.calls, 1)
        return None if nothing_priced and self.amount_picodollars == 0 else self.amount_picodollars

    def __add__(self, other: Self) -> "UsageLine":
        return UsageLine(key=self.key, **{name: getattr(self, name) + getattr(other, name) for name in SUMS})


def usage_by(org: Org, *, start: date, end: date, group_by: str, project: Project | None = None) -> list[UsageLine]:
    """
    Sum the days from `start` to `end`, both included, by one of `GROUPS`.

    Days come in order; everything else begins with what cost most. A `project` narrows it to that project.
    """
    column = GROUPS[group_by]
    rows = UsageDaily.objects.for_org(org).filter(day__range=(start, end))
    if project is not None:
        rows = rows.filter(project_id=project.slug)
    lines: dict[str, UsageLine] = {}
    # Added here and not by the database: SQLite has no whole number beyond 2^63.
    for row in rows.values(column, *SUMS).iterator(chunk_size=2000):
        key = str(row.pop(column))
        line = UsageLine(key=key, **row)
        lines[key] = lines[key] + line if key in lines else line
    if group_by == "day":
        return sorted(lines.values(), key=lambda line: line.key)
    return sorted(lines.values(), key=lambda line: (-line.amount_picodollars, -line.calls, line.key))


def total(lines: Iterable[UsageLine]) -> UsageLine:
    """Add lines up."""
    return sum(lines, start=UsageLine(key="total"))


def month_to_date(org: Org, now: datetime, *, project: Project | None = None) -> UsageLine:
    """Sum the UTC month that `now` is in, up to today."""
    today = now.astimezone(UTC).date()
    return total(usage_by(org, start=today.replace(day=1), end=today, group_by="mode", project=project))
