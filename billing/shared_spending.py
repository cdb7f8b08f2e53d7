"""
What shared runs may cost the platform in one UTC day: an amount for each organization, and one for all together.

Each has one row, as a monthly budget has, and is held and settled like one. The platform's row is always changed first,
so that no two transactions wait for each other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date
from functools import cache

from django.db.models import Case, F, Q, Subquery, Value, When
from django.db.models.functions import Coalesce, Greatest

from billing.models import BillingSetting, CostEvent, Entitlement, SharedSpending
from rensei.core.auth_modes import AuthMode
from rensei.core.transactions import assert_open
from rensei.core.whole_numbers import LessThanOrEqual, Plus, WholeNumberField

# The account of all organizations together. No organization's id is without `org_`.
PLATFORM = "platform"


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What is left of an account's amount for the day, in picodollars: `held` is what live runs may still cost."""

    account: str
    used: int
    held: int
    limit: int


def take(*, org_id: str, day: date, picodollars: int) -> Spending | None:
    """Hold an amount for an organization and for the platform. Gives the account that has too little left, if any."""
    assert_open()
    for account in (PLATFORM, org_id):
        # A row that is missing has room as a new one has.
        is_taken = _take(account, day=day, picodollars=picodollars) or (
            _make_row(account, day=day) and _take(account, day=day, picodollars=picodollars)
        )
        if not is_taken:
            if account != PLATFORM:
                _change(PLATFORM, day=day, used=0, held=-picodollars)
            return read(account, day=day)
    return None


def settle(*, day: date, released: Mapping[str, int], spent: Mapping[str, int]) -> None:
    """Let go of what runs have held, and count what they cost, by organization."""
    assert_open()
    org_ids = sorted(org_id for org_id in {*released, *spent} if released.get(org_id) or spent.get(org_id))
    if not org_ids:
        return
    _change(PLATFORM, day=day, used=sum(spent.values()), held=-sum(released.values()))
    for org_id in org_ids:
        _change(org_id, day=day, used=spent.get(org_id, 0), held=-released.get(org_id, 0))


def add_adjustments(lines: Sequence[CostEvent]) -> None:
    """Count what later corrections of a shared call add to its cost, or take from it."""
    if spent := amounts(lines):
        settle(day=lines[0].occurred_at.astimezone(UTC).date(), released={}, spent=spent)


def read(account: str, *, day: date) -> Spending:
    row = SharedSpending.objects.annotate(limit=_limit_of(account)).get(account=account)
    return Spending(account=account, used=row.used if row.day >= day else 0, held=row.held, limit=int(row.limit))


def amounts(lines: Iterable[CostEvent]) -> dict[str, int]:
    """Add up what shared calls cost, by organization."""
    found: dict[str, int] = {}
    for line in lines:
        if line.auth_mode == AuthMode.SHARED and line.amount_picodollars:
            found[line.org_id] = found.get(line.org_id, 0) + line.amount_picodollars
    return found


def _make_row(account: str, *, day: date) -> bool:
    """Make the row of an account, and tell whether it had none."""
    if SharedSpending.objects.filter(account=account).exists():
        return False
    row = SharedSpending(account=account, org_id=None if account == PLATFORM else account, day=day)
    SharedSpending.objects.bulk_create([row], ignore_conflicts=True)
    return True


def _take(account: str, *, day: date, picodollars: int) -> bool:
    would_be = _plus(Plus(_used_on(day), F("held")), picodollars)
    return bool(
        SharedSpending.objects.filter(Q(LessThanOrEqual(would_be, _limit_of(account))), account=account).update(
            used=_used_on(day), held=_plus(F("held"), picodollars), day=Greatest(F("day"), Value(day))
        )
    )


def _change(account: str, *, day: date, used: int, held: int) -> None:
    """Change a row. What is used on a day that is over changes nothing."""
    row = SharedSpending.objects.filter(account=account)
    changed = {
        "used": Case(When(day__gt=day, then=F("used")), default=_plus(_used_on(day), used)),
        "held": _plus(F("held"), held),
        "day": Greatest(F("day"), Value(day)),
    }
    if not row.update(**changed):
        _make_row(account, day=day)
        row.update(**changed)


def _limit_of(account: str) -> Coalesce:
    if account == PLATFORM:
        column, found = "shared_platform_picodollars_per_day", []
    else:
        column = "shared_org_picodollars_per_day"
        own = Entitlement.objects.filter(org_id=account).values("shared_picodollars_per_day")
        found = [Subquery(own, output_field=WholeNumberField())]
    setting = Subquery(BillingSetting.objects.values(column)[:1], output_field=WholeNumberField())
    return Coalesce(*found, setting, _whole(_default(column)), output_field=WholeNumberField())


@cache
def _default(column: str) -> int:
    value: int = getattr(BillingSetting(), column)
    return value


def _used_on(day: date) -> Case:
    """What the row says is used, which is nothing yet where the row is of an older day."""
    return Case(When(day__lt=day, then=_whole(0)), default=F("used"))


def _plus(sum_so_far: Case | F | Plus, picodollars: int) -> Plus:
    return Plus(sum_so_far, _whole(picodollars))


def _whole(picodollars: int) -> Value:
    return Value(picodollars, output_field=WholeNumberField())
