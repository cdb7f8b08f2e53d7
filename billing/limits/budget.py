"""The monthly budget: the most that an organization's metered runs may cost in one UTC month."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, cast

from django.conf import settings
from django.db.models import Case, F, Q, Subquery, Value, When
from django.db.models.functions import Greatest
from django.db.models.lookups import IsNull

from billing.models import BudgetHold, BudgetUsage, CostEvent, Entitlement
from rensei.core.bulk import delete_all
from rensei.core.errors import RenseiError, Said
from rensei.core.instances import made_like
from rensei.core.money import dollars
from rensei.core.periods import end_of, month_of, written
from rensei.core.transactions import assert_open
from rensei.core.whole_numbers import LessThanOrEqual, Plus, WholeNumberField
from rensei.orgs.models import Org

_BLANK = BudgetHold()


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The state of a month's budget, in picodollars. `held` is the most that live runs may cost."""

    used: int
    held: int
    limit: int
    resets_at: datetime


class MeteredBudgetExceeded(RenseiError):
    """The most that the run may cost exceeds the remainder of the organization's monthly budget."""

    code = "METERED_BUDGET_EXCEEDED"
    status = 402
    title = "Metered budget exceeded"
    message = Said(
        (
            "This run may cost up to ${amount}, which no longer fits: of the organization's budget of "
            "${limit} for this month, ${used} are used and ${held} are held by runs that have not ended."
        ),
        (
            "Lower maxTokens, wait for those runs to end, use byok with a key of your own, or ask your "
            "Rensei operator{contact} for a higher budget. The budget resets at {resets_at}."
        ),
    )
    gateway_message = message.replace("maxTokens", "max_tokens")


def hold(
    *, org_id: str, picodollars: Mapping[str, int], now: datetime
) -> tuple[list[BudgetHold], dict[str, MeteredBudgetExceeded]]:
    """
    Hold the most that runs may cost, by run id, in the transaction that saves them, and refuse what exceeds the budget.

    One conditional UPDATE decides, so concurrent dispatches never exceed the budget. Runs of an organization
    without a budget are held for too, so that a budget set later counts them. Returns the holds, to be saved with the
    runs, and the refused runs by their ids.
    """
    assert_open()
    month = month_of(now)
    held = dict(picodollars)
    if not _take(org_id=org_id, month=month, picodollars=sum(held.values())):
        BudgetUsage.objects.bulk_create([BudgetUsage(org_id=org_id, month=month)], ignore_conflicts=True)
        held = {
            run_id: amount
            for run_id, amount in picodollars.items()
            if _take(org_id=org_id, month=month, picodollars=amount)
        }
    holds = [
        made_like(_BLANK, run_id=run_id, org_id=org_id, picodollars=amount, created_at=now)
        for run_id, amount in held.items()
    ]
    refused = {run_id: amount for run_id, amount in picodollars.items() if run_id not in held}
    if not refused:
        return holds, {}
    budget = _read(org_id=org_id, now=now)
    assert budget is not None, "Without a budget everything fits"
    return holds, {run_id: _exceeded(budget, picodollars=amount) for run_id, amount in refused.items()}


def release_holds(*, run_ids: Collection[str]) -> None:
    """
    Release what runs have held, in the transaction that ends them and records their actual cost.

    Runs without a hold, and runs already released, change nothing.
    """
    assert_open()
    # A second release of the same run waits for the first, and then finds no hold.
    holds = delete_all(BudgetHold, run_ids, returning=("run_id", "org_id", "picodollars"))
    released: dict[str, int] = defaultdict(int)
    for _, org_id, picodollars in holds:
        released[org_id] += picodollars
    for org_id in sorted(released):
        BudgetUsage.objects.filter(org_id=org_id).update(held=_plus(F("held"), -released[org_id]))


def add_billed(lines: Iterable[CostEvent]) -> None:
    """
    Add what new ledger lines bill to the use of their months, in the transaction that writes the lines.

    It is counted with or without a budget. A line of a past month changes nothing here.
    """
    assert_open()
    totals: dict[tuple[str, date], int] = defaultdict(int)
    for line in lines:
        if line.billed_picodollars:
            totals[line.org_id, month_of(line.occurred_at)] += line.billed_picodollars
    for org_id, month in sorted(totals):
        billed = totals[org_id, month]
        if not _add(org_id=org_id, month=month, billed=billed):
            BudgetUsage.objects.bulk_create([BudgetUsage(org_id=org_id, month=month)], ignore_conflicts=True)
            _add(org_id=org_id, month=month, billed=billed)


def budget_of(org: Org, now: datetime) -> Budget | None:
    """Read the remainder of the month's budget, in one query. None where no budget is set."""
    return _read(org_id=org.pk, now=now)


def require_room(budget: Budget, *, picodollars: int) -> None:
    """
    Check a budget that was read, for a preview. A dispatch is decided by `hold`.

    :raises MeteredBudgetExceeded: if the amount exceeds the remainder
    """
    if budget.used + budget.held + picodollars > budget.limit:
        raise _exceeded(budget, picodollars=picodollars)


def _take(*, org_id: str, month: date, picodollars: int) -> bool:
    limit = Subquery(
        Entitlement.objects.filter(org_id=org_id).values("monthly_budget_picodollars"), output_field=WholeNumberField()
    )
    would_be = _plus(Plus(_used_in(month), F("held")), picodollars)
    room = Q(IsNull(limit, True)) | Q(LessThanOrEqual(would_be, limit))
    # The row belongs to the newest month seen by any machine, so small clock differences do not reset it.
    return bool(
        BudgetUsage.objects.filter(room, org_id=org_id).update(
            used=_used_in(month), held=_plus(F("held"), picodollars), month=Greatest(F("month"), Value(month))
        )
    )


def _add(*, org_id: str, month: date, billed: int) -> bool:
    used = Case(When(month__gt=month, then=F("used")), default=_plus(_used_in(month), billed))
    return bool(BudgetUsage.objects.filter(org_id=org_id).update(used=used, month=Greatest(F("month"), Value(month))))


def _used_in(month: date) -> Case:
    """The use that the row records. Zero if the row belongs to an older month."""
    return Case(When(month__lt=month, then=_whole(0)), default=F("used"))


def _plus(sum_so_far: Any, picodollars: int) -> Plus:
    return Plus(sum_so_far, _whole(picodollars))


def _whole(picodollars: int) -> Value:
    return Value(picodollars, output_field=WholeNumberField())


def _read(*, org_id: str, now: datetime) -> Budget | None:
    month = month_of(now)
    found = (
        Entitlement.objects.filter(org_id=org_id, monthly_budget_picodollars__isnull=False)
        .values_list(
            "monthly_budget_picodollars",
            "org__budget_usage__month",
            "org__budget_usage__used",
            "org__budget_usage__held",
        )
        .first()
    )
    if found is None:
        return None
    limit, newest, used, held = cast("tuple[int, date | None, int | None, int | None]", found)
    current = newest is not None and newest >= month
    return Budget(used=used or 0 if current else 0, held=held or 0, limit=limit, resets_at=end_of(month))


def _exceeded(budget: Budget, *, picodollars: int) -> MeteredBudgetExceeded:
    resets_at = written(budget.resets_at, timespec="seconds")
    amounts = {name: dollars(getattr(budget, name)) for name in ("used", "held", "limit")}
    email = settings.RENSEI_SUPPORT_EMAIL
    return MeteredBudgetExceeded(
        amount=dollars(picodollars),
        **amounts,
        contact=f" ({email})" if email else "",
        resets_at=resets_at,
        extra={**amounts, "resetsAt": resets_at},
    )
