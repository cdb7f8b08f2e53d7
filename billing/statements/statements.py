"""
The monthly statement: what an organization owes the platform for one UTC month, line by line.

An open statement is read from the ledger. When the month is over, an operator closes it. From then on its content is
fixed, and a later correction belongs to the month in which it is written.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import Any, Self

from django.db.models import Sum
from django.db.models.functions import TruncMonth

from billing.models import CostEvent, Statement, UsageDaily
from rensei.audit.record import record_operator
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import NotFound
from rensei.core.periods import end_of, month_of, start_of, written
from rensei.core.token_classes import COUNTS, TOKEN_CLASSES, WEB_SEARCHES
from rensei.core.transactions import durable
from rensei.core.whole_numbers import WholeSum
from rensei.orgs.models import Org, OrgScopedQuerySet, User

# In the order of a statement's lines: the prompt, the answer, the searches.
CLASSES = sorted(TOKEN_CLASSES, key=lambda one: (one == WEB_SEARCHES, one.price == "output"))
# A settlement reads the clock before it writes, and retries while the database is unavailable.
SETTLED_AFTER = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class StatementLine:
    """A number of tokens of one class, or of web searches, of one model at one price."""

    provider: str
    served_model_id: str
    token_class: str
    count: int
    unit_picodollars: int

    @property
    def amount_picodollars(self) -> int:
        return self.count * self.unit_picodollars


@dataclass(frozen=True, kw_only=True)
class StatementAdjustment:
    """A correction written in the month, of a charge of this or an earlier month."""

    id: str
    occurred_at: str
    charge_id: str
    run_id: str
    provider: str
    served_model_id: str
    amount_picodollars: int


@dataclass(frozen=True, kw_only=True)
class MonthlyStatement:
    """One month of an organization. Its total is exactly the sum of its lines and adjustments."""

    month: date
    lines: Sequence[StatementLine]
    adjustments: Sequence[StatementAdjustment]
    closed_at: datetime | None = None
    digest: str = ""

    @property
    def total_picodollars(self) -> int:
        lines = sum(line.amount_picodollars for line in self.lines)
        return lines + sum(adjustment.amount_picodollars for adjustment in self.adjustments)

    @property
    def content(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
        """The lines, adjustments and total in their stored form."""
        lines = [asdict(line) for line in self.lines]
        return lines, [asdict(adjustment) for adjustment in self.adjustments], self.total_picodollars

    @property
    def name(self) -> str:
        return f"{self.month:%Y-%m}"

    @classmethod
    def of(cls, stored: Statement) -> Self:
        return cls(
            month=stored.month,
            lines=[StatementLine(**line) for line in stored.lines],
            adjustments=[StatementAdjustment(**adjustment) for adjustment in stored.adjustments],
            closed_at=stored.closed_at,
            digest=stored.digest,
        )


@dataclass(frozen=True, kw_only=True)
class StatementSummary:
    """A month in the list of statements."""

    month: date
    total_picodollars: int
    closed_at: datetime | None

    @property
    def name(self) -> str:
        return f"{self.month:%Y-%m}"


def summaries(org: Org, *, now: datetime) -> list[StatementSummary]:
    """List the months of an organization, newest first: the current, those with metered calls, and the closed."""
    closed = {row.month: row for row in Statement.objects.for_org(org).defer("lines", "adjustments")}
    open_totals = {month_of(now): 0, **_billed_by_month(UsageDaily.objects.for_org(org))}
    return [
        StatementSummary(
            month=month,
            total_picodollars=closed[month].total_picodollars if month in closed else open_totals[month],
            closed_at=closed[month].closed_at if month in closed else None,
        )
        for month in sorted({*closed, *open_totals}, reverse=True)
    ]


def statement(org: Org, name: str, *, now: datetime) -> MonthlyStatement:
    """
    Return the statement of a month such as `2026-03`: the closed one, else its present content.

    :raises NotFound: if the organization has no such month
    """
    month = _month_named(name)
    stored = Statement.objects.for_org(org).filter(month=month).first()
    if stored is not None:
        return MonthlyStatement.of(stored)
    if not any(summary.month == month for summary in summaries(org, now=now)):
        raise NotFound
    return read_ledger(org, month)


def read_ledger(org: Org, month: date) -> MonthlyStatement:
    """Read from the ledger what an organization owes for a month."""
    events = CostEvent.objects.for_org(org).filter(occurred_at__gte=start_of(month), occurred_at__lt=end_of(month))
    owed = events.filter(auth_mode=AuthMode.METERED).exclude(billed_picodollars=0)
    return MonthlyStatement(month=month, lines=_lines(owed), adjustments=_adjustments(owed))


def closable(org_ids: Iterable[str], *, now: datetime) -> list[tuple[Org, StatementSummary]]:
    """The open statements of past months of the organizations, oldest first."""
    return [
        (org, summary)
        for org in Org.objects.filter(pk__in=org_ids).order_by("slug")
        for summary in reversed(summaries(org, now=now))
        if summary.closed_at is None and end_of(summary.month) + SETTLED_AFTER <= now
    ]


def close(*, org_ids: Iterable[str], actor_user: User) -> list[Statement]:
    """Close all past months of the organizations. Closed statements do not change."""
    with durable():
        now = database_now()
        return [_close(org, summary.month, now, actor_user) for org, summary in closable(org_ids, now=now)]


def digest_of(org_id: str, month: date, lines: Any, adjustments: Any, total_picodollars: int) -> str:
    """Return the digest of the whole content of a closed statement."""
    said = [org_id, month.isoformat(), lines, adjustments, total_picodollars]
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _close(org: Org, month: date, now: datetime, actor_user: User) -> Statement:
    found = read_ledger(org, month)
    lines, adjustments, total = found.content
    closed: Statement = Statement.objects.create(
        org=org,
        month=month,
        lines=lines,
        adjustments=adjustments,
        total_picodollars=total,
        digest=digest_of(org.pk, month, lines, adjustments, total),
        closed_at=now,
        closed_by=actor_user.email,
    )
    record_operator(
        actor_user,
        "statement.closed",
        object_id=found.name,
        org=org,
        total_picodollars=total,
        digest=closed.digest,
    )
    return closed


def _month_named(name: str) -> date:
    """:raises NotFound: if it is not the name of a month"""
    if not re.fullmatch(r"2\d{3}-(0[1-9]|1[0-2])", name, flags=re.ASCII):
        raise NotFound
    return date.fromisoformat(f"{name}-01")


def _billed_by_month(days: OrgScopedQuerySet[UsageDaily]) -> dict[date, int]:
    metered = days.filter(auth_mode=AuthMode.METERED).annotate(month=TruncMonth("day")).values("month")
    months = metered.order_by("month").annotate(total=WholeSum("billed_picodollars"))
    return {row["month"]: row["total"] for row in months}


def _lines(owed: OrgScopedQuerySet[CostEvent]) -> list[StatementLine]:
    """The charges, at their full amount, summed by model, class and price."""
    prices = [one.column for one in CLASSES]
    groups = (
        owed.filter(kind=CostEvent.Kind.CHARGE)
        .order_by("provider", "served_model_id", *prices)
        .values("provider", "served_model_id", *prices)
        .annotate(**{f"sum_{count}": Sum(count) for count in COUNTS})
    )
    totals: dict[tuple[str, str, str, int], int] = {}
    for group in groups:
        for one in CLASSES:
            if count := group[f"sum_{one.count}"]:
                key = (group["provider"], group["served_model_id"], one.price, group[one.column])
                # PostgreSQL returns the sum of large integers as a decimal.
                totals[key] = totals.get(key, 0) + int(count)
    places = [one.price for one in CLASSES]
    return [
        StatementLine(
            provider=provider, served_model_id=model, token_class=token_class, count=count, unit_picodollars=price
        )
        for (provider, model, token_class, price), count in sorted(
            totals.items(), key=lambda item: (*item[0][:2], places.index(item[0][2]), item[0][3])
        )
    ]


def _adjustments(owed: OrgScopedQuerySet[CostEvent]) -> list[StatementAdjustment]:
    return [
        StatementAdjustment(
            id=line.pk,
            occurred_at=written(line.occurred_at),
            charge_id=line.adjusts_id,
            run_id=line.run_id,
            provider=line.provider,
            served_model_id=line.served_model_id,
            amount_picodollars=line.billed_picodollars,
        )
        for line in owed.filter(kind=CostEvent.Kind.ADJUSTMENT).order_by("occurred_at", "pk")
    ]
