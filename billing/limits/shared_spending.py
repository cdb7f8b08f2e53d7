"""
Limits of what shared runs may cost the platform in one UTC day: for each organization, and for all together.

Each limit has one row, held and settled like a monthly budget. The platform's row is always changed first, so that
transactions cannot deadlock.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import NamedTuple

from django.db import connection
from django.db.models import Subquery, Value
from django.db.models.functions import Coalesce

from billing.models import BillingSetting, CostEvent, Entitlement, SharedSpending
from rensei.core.auth_modes import AuthMode
from rensei.core.transactions import assert_open
from rensei.core.whole_numbers import WholeNumberField, at_most, plus
from rensei.orgs.models import Org

# The account of all organizations together. It cannot collide: organization ids begin with `org_`.
PLATFORM = "platform"


@dataclass(frozen=True, kw_only=True)
class Spending:
    """The state of an account's limit for the day, in picodollars. `held` is the most that live runs may still cost."""

    account: str
    used: int
    held: int
    limit: int


def take(*, org_id: str, day: date, picodollars: int) -> Spending | None:
    """Hold an amount for an organization and for the platform. Returns the account with too little left, or None."""
    assert_open()
    for account in (PLATFORM, org_id):
        # A missing row is created, with all of its limit left.
        is_taken = _take(account, day=day, picodollars=picodollars) or (
            _make_row(account, day=day) and _take(account, day=day, picodollars=picodollars)
        )
        if not is_taken:
            if account != PLATFORM:
                _change([(PLATFORM, 0, -picodollars)], day=day)
            return read(account, day=day)
    return None


def settle(*, day: date, released: Mapping[str, int], spent: Mapping[str, int]) -> None:
    """Release what runs have held, and count what they cost, by organization."""
    assert_open()
    org_ids = sorted(org_id for org_id in {*released, *spent} if released.get(org_id) or spent.get(org_id))
    if not org_ids:
        return
    changes = [(org_id, spent.get(org_id, 0), -released.get(org_id, 0)) for org_id in org_ids]
    _change([(PLATFORM, sum(spent.values()), -sum(released.values())), *changes], day=day)


def read(account: str, *, day: date) -> Spending:
    row = SharedSpending.objects.annotate(limit=_limit_of(account)).get(account=account)
    return Spending(account=account, used=row.used if row.day >= day else 0, held=row.held, limit=int(row.limit))


def read_both(org_id: str, *, day: date) -> list[Spending]:
    """Read the platform's account and an organization's, for a preview. A missing row has all of its limit left."""
    rows = {row.account: row for row in SharedSpending.objects.filter(account__in=[PLATFORM, org_id])}
    limits = Org.objects.filter(pk=org_id).values_list(_limit_of(PLATFORM), _limit_of(org_id)).get()
    return [
        Spending(
            account=account,
            used=row.used if row is not None and row.day >= day else 0,
            held=row.held if row is not None else 0,
            limit=int(limit),
        )
        for account, limit in zip((PLATFORM, org_id), limits, strict=True)
        for row in [rows.get(account)]
    ]


def amounts(lines: Iterable[CostEvent]) -> dict[str, int]:
    """Add up the cost of shared calls, by organization."""
    found: dict[str, int] = {}
    for line in lines:
        if line.auth_mode == AuthMode.SHARED and line.amount_picodollars:
            found[line.org_id] = found.get(line.org_id, 0) + line.amount_picodollars
    return found


def _make_row(account: str, *, day: date) -> bool:
    """Create the row of an account. Returns whether it was missing."""
    if SharedSpending.objects.filter(account=account).exists():
        return False
    row = SharedSpending(account=account, org_id=None if account == PLATFORM else account, day=day)
    SharedSpending.objects.bulk_create([row], ignore_conflicts=True)
    return True


def _take(account: str, *, day: date, picodollars: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            _statements().take,
            {"account": account, "day": day.isoformat(), "amount": picodollars, **_defaults()},
        )
        return bool(cursor.rowcount)


def _change(changes: Sequence[tuple[str, int, int]], *, day: date) -> None:
    """Add to the used and held amounts of rows, in the given order. Use on a past day changes nothing."""
    rows: list[dict[str, str | int]] = [
        {"account": account, "day": day.isoformat(), "used": used, "held": held} for account, used, held in changes
    ]
    with connection.cursor() as cursor:
        # One round trip to the server for all rows.
        cursor.executemany(_statements().change, rows)
        if cursor.rowcount == len(rows):
            return
    missing = [row for row in rows if _make_row(str(row["account"]), day=day)]
    with connection.cursor() as cursor:
        cursor.executemany(_statements().change, missing)


class _Statements(NamedTuple):
    take: str
    change: str


@cache
def _statements() -> _Statements:
    """
    Build the statements that each shared call runs, for which the ORM takes longer than the database.

    A row of an older day counts as unused. An organization's limit is its own, else that of all organizations,
    else the default of a new installation.
    """
    used = "CASE WHEN day < %(day)s THEN 0 ELSE used END"
    limit = (
        "CASE WHEN account = 'platform' THEN COALESCE("
        "(SELECT shared_platform_picodollars_per_day FROM billing_billingsetting), %(platform)s) ELSE COALESCE("
        "(SELECT shared_picodollars_per_day FROM billing_entitlement WHERE org_id = %(account)s), "
        "(SELECT shared_org_picodollars_per_day FROM billing_billingsetting), %(org)s) END"
    )
    held = plus("held", "%(amount)s")
    day = "day = CASE WHEN day < %(day)s THEN %(day)s ELSE day END"
    return _Statements(
        take=f"UPDATE billing_sharedspending SET used = {used}, held = {held}, {day} "  # noqa: S608 - text of ours
        f"WHERE account = %(account)s AND {at_most(plus(used, held), limit)}",
        change=f"UPDATE billing_sharedspending SET "  # noqa: S608 - text of ours
        f"used = CASE WHEN day > %(day)s THEN used ELSE {plus(used, '%(used)s')} END, "
        f"held = {plus('held', '%(held)s')}, {day} WHERE account = %(account)s",
    )


@cache
def _defaults() -> dict[str, int]:
    """The defaults of a new installation, for limits that are not set."""
    setting = BillingSetting()
    return {"platform": setting.shared_platform_picodollars_per_day, "org": setting.shared_org_picodollars_per_day}


def _limit_of(account: str) -> Coalesce:
    if account == PLATFORM:
        column, default, found = "shared_platform_picodollars_per_day", _defaults()["platform"], []
    else:
        column, default = "shared_org_picodollars_per_day", _defaults()["org"]
        own = Entitlement.objects.filter(org_id=account).values("shared_picodollars_per_day")
        found = [Subquery(own, output_field=WholeNumberField())]
    setting = Subquery(BillingSetting.objects.values(column)[:1], output_field=WholeNumberField())
    whole = Value(default, output_field=WholeNumberField())
    return Coalesce(*found, setting, whole, output_field=WholeNumberField())
