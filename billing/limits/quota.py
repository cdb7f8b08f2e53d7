"""The shared quota: the number of runs of an organization on the platform's free tier on one UTC day."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache

from django.db import connection
from django.db.models import F, OuterRef, PositiveIntegerField, Subquery, Value
from django.db.models.functions import Coalesce

from billing.limits import shared_spending
from billing.limits.shared_spending import PLATFORM, Spending
from billing.models import BillingSetting, CostEvent, Entitlement, Hold, SharedUsage
from rensei.core.bulk import delete_all, insert_all
from rensei.core.errors import RenseiError, Said
from rensei.core.instances import made_like
from rensei.core.money import dollars
from rensei.core.periods import start_of, written
from rensei.core.transactions import assert_open
from rensei.orgs.models import Org

_BLANK = Hold()


@dataclass(frozen=True, kw_only=True)
class SharedQuota:
    """How much of today's shared quota is used: the settled runs and the live ones."""

    used: int
    limit: int
    resets_at: datetime


class SharedQuotaExceeded(RenseiError):
    """The day's shared runs are used up, or the limit of their daily cost to the platform would be exceeded."""

    code = "SHARED_QUOTA_EXCEEDED"
    status = 429
    title = "Shared quota exceeded"
    message = Said(
        "{reason}", "The quota resets at {resets_at}. Dispatch again then, or connect your own key and use byok."
    )
    retryable = True


def take_shared_run(*, org_id: str, run_id: str, now: datetime, picodollars: int = 0) -> None:
    """
    Hold one of the day's shared runs, in the transaction that saves the run.

    :raises SharedQuotaExceeded: if no run is left for the day
    """
    holds, refused = take_shared_runs(org_id=org_id, picodollars={run_id: picodollars}, now=now)
    insert_all(Hold, holds)
    for refusal in refused.values():
        raise refusal


def take_shared_runs(
    *, org_id: str, picodollars: Mapping[str, int], now: datetime
) -> tuple[list[Hold], dict[str, SharedQuotaExceeded]]:
    """
    Hold some of the day's shared runs, in the transaction that saves them, and refuse those beyond the limit.

    `picodollars` is the most that each run may cost, by run id, and is held too.

    One conditional UPDATE decides, so concurrent dispatches never exceed the limit. `now` is the database's
    clock; a run keeps the UTC day of its admission. Returns the holds, to be saved with the runs, and the refused runs
    by their ids.
    """
    assert_open()
    day = now.astimezone(UTC).date()
    # The amount is held first: the platform's row is locked before that of any organization.
    too_dear = _hold_amounts(org_id=org_id, day=day, picodollars=picodollars)
    run_ids = [run_id for run_id in picodollars if run_id not in too_dear]
    taken = run_ids
    if run_ids and not _take(org_id=org_id, day=day, count=len(run_ids)):
        SharedUsage.objects.bulk_create([SharedUsage(org_id=org_id, day=day)], ignore_conflicts=True)
        taken = [run_id for run_id in run_ids if _take(org_id=org_id, day=day, count=1)]
        given_back = sum(picodollars[run_id] for run_id in set(run_ids) - set(taken))
        shared_spending.settle(day=day, released={org_id: given_back}, spent={})
    holds = [
        made_like(_BLANK, run_id=run_id, org_id=org_id, day=day, picodollars=picodollars[run_id], created_at=now)
        for run_id in taken
    ]
    if len(taken) == len(picodollars):
        return holds, {}
    quota = _read(org_id=org_id, now=now)
    return holds, {
        run_id: _exceeded(quota, now=now, spending=too_dear.get(run_id), picodollars=amount)
        for run_id, amount in picodollars.items()
        if run_id not in taken
    }


def _hold_amounts(*, org_id: str, day: date, picodollars: Mapping[str, int]) -> dict[str, Spending]:
    """Hold what runs may cost, together or one by one. Returns the refused runs, each with the limit it exceeds."""
    if shared_spending.take(org_id=org_id, day=day, picodollars=sum(picodollars.values())) is None:
        return {}
    met = {
        run_id: shared_spending.take(org_id=org_id, day=day, picodollars=amount)
        for run_id, amount in picodollars.items()
    }
    return {run_id: spending for run_id, spending in met.items() if spending is not None}


def release_holds(*, spent: Mapping[str, bool], now: datetime, lines: Sequence[CostEvent] = ()) -> None:
    """
    Release what runs have held, in the transaction that ends them. `spent` is by run id.

    `lines` are the new ledger lines of the transaction, written at `now`: their cost to the platform counts from
    then on. For a call with an unknown price, the held amount counts.

    A spent run stays counted on the day of its admission. A run that never reached the provider returns its
    slot. Runs without a hold, and runs already released, change nothing.
    """
    assert_open()
    # A second release of the same run waits for the first, and then finds no hold.
    holds = delete_all(Hold, spent, returning=("run_id", "org_id", "day", "picodollars"))
    _settle_amounts({run_id: (org_id, int(amount)) for run_id, org_id, _, amount in holds}, lines, now=now)
    released = Counter((org_id, day) for _, org_id, day, _ in holds)
    used = Counter((org_id, day) for run_id, org_id, day, _ in holds if spent[run_id])
    for org_id, day in sorted(released):
        with connection.cursor() as cursor:
            cursor.execute(_RELEASE, [released[org_id, day], used[org_id, day], org_id, day.isoformat()])


def _settle_amounts(holds: Mapping[str, tuple[str, int]], lines: Sequence[CostEvent], *, now: datetime) -> None:
    cost: Counter[str] = Counter(shared_spending.amounts(lines))
    released: Counter[str] = Counter()
    unpriced = {line.run_id for line in lines if line.amount_picodollars is None}
    for run_id, (org_id, amount) in holds.items():
        released[org_id] += amount
        if run_id in unpriced:
            cost[org_id] += amount
    shared_spending.settle(day=now.astimezone(UTC).date(), released=released, spent=cost)


def shared_quota(org: Org, now: datetime) -> SharedQuota:
    """Read how much of the day's shared quota is used, in one query."""
    return _read(org_id=org.pk, now=now)


def require_room(quota: SharedQuota, *, now: datetime) -> None:
    """
    Check a quota that was read, for a preview. A dispatch is decided by `take_shared_run`.

    :raises SharedQuotaExceeded: if nothing is left
    """
    if quota.used >= quota.limit:
        raise _exceeded(quota, now=now)


def require_amount(quota: SharedQuota, accounts: Sequence[Spending], *, picodollars: int, now: datetime) -> None:
    """
    Check accounts that were read, for a preview, in the order in which they are held.

    :raises SharedQuotaExceeded: for the first that has less left than the run may cost
    """
    for spending in accounts:
        if spending.used + spending.held + picodollars > spending.limit:
            raise _exceeded(quota, now=now, spending=spending, picodollars=picodollars)


def limit_of(org_id: str | OuterRef) -> Coalesce:
    """The organization's own limit, else the platform's, else the default of a new installation."""
    return Coalesce(
        Subquery(Entitlement.objects.filter(org_id=org_id).values("shared_runs_per_day")),
        Subquery(BillingSetting.objects.values("shared_runs_per_day")[:1]),
        Value(_default_limit()),
        output_field=PositiveIntegerField(),
    )


def _take(*, org_id: str, day: date, count: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(_TAKE, {"org_id": org_id, "day": day.isoformat(), "count": count, "default": _default_limit()})
        return bool(cursor.rowcount)


@cache
def _default_limit() -> int:
    return BillingSetting().shared_runs_per_day


# Every shared call runs these two statements. The ORM takes longer to build them than the database to execute them.
# The condition repeats that of `limit_of`.
_TAKE = """
    UPDATE billing_sharedusage SET held = held + %(count)s
    WHERE org_id = %(org_id)s AND day = %(day)s AND used + held + %(count)s <= COALESCE(
        (SELECT shared_runs_per_day FROM billing_entitlement WHERE org_id = %(org_id)s),
        (SELECT shared_runs_per_day FROM billing_billingsetting),
        %(default)s
    )
"""
_RELEASE = "UPDATE billing_sharedusage SET held = held - %s, used = used + %s WHERE org_id = %s AND day = %s"


def _read(*, org_id: str, now: datetime) -> SharedQuota:
    day = now.astimezone(UTC).date()
    taken = SharedUsage.objects.filter(org_id=org_id, day=day).values_list(F("used") + F("held"))
    used, limit = (
        Org.objects.filter(pk=org_id)
        .values_list(Coalesce(Subquery(taken), 0, output_field=PositiveIntegerField()), limit_of(org_id))
        .get()
    )
    resets_at = start_of(day + timedelta(days=1))
    return SharedQuota(used=used, limit=limit, resets_at=resets_at)


def _exceeded(
    quota: SharedQuota, *, now: datetime, spending: Spending | None = None, picodollars: int = 0
) -> SharedQuotaExceeded:
    resets_at = written(quota.resets_at, timespec="seconds")
    reason = f"The organization has used {quota.used} of its {quota.limit} shared runs for today."
    figures: dict[str, str | None] = {}
    if spending is not None:
        figures = {
            "usedUsd": dollars(spending.used),
            "heldUsd": dollars(spending.held),
            "limitUsd": dollars(spending.limit),
        }
        whose = "all shared runs together" if spending.account == PLATFORM else "the organization's shared runs"
        reason = (
            f"This run may cost up to ${dollars(picodollars)}, which no longer fits: of the ${figures['limitUsd']} "
            f"that {whose} may cost the platform today, ${figures['usedUsd']} are used and ${figures['heldUsd']} are "
            f"held by runs that have not ended. The organization has used {quota.used} of its {quota.limit} runs."
        )
    return SharedQuotaExceeded(
        reason=reason,
        resets_at=resets_at,
        extra={
            "used": quota.used,
            "limit": quota.limit,
            **figures,
            "resetsAt": resets_at,
            "retryAfter": max(1, math.ceil((quota.resets_at - now).total_seconds())),
        },
    )
