"""The shared quota: so many runs of an organization on one UTC day are on the platform's free tier."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache

from django.db import connection
from django.db.models import F, OuterRef, PositiveIntegerField, Subquery, Value
from django.db.models.functions import Coalesce

from billing.models import BillingSetting, Entitlement, Hold, SharedUsage
from rensei.core.bulk import delete_all, insert_all
from rensei.core.errors import RenseiError
from rensei.core.transactions import assert_open
from rensei.orgs.models import Org


@dataclass(frozen=True, kw_only=True)
class SharedQuota:
    """How much of today's shared runs is taken: those that settled and those that are still live."""

    used: int
    limit: int
    resets_at: datetime


class SharedQuotaExceeded(RenseiError):
    """All of the organization's shared runs of the day are taken."""

    code = "SHARED_QUOTA_EXCEEDED"
    status = 429
    title = "Shared quota exceeded"
    message = (
        "The organization has used {used} of its {limit} shared runs for today. The quota resets at {resets_at}. "
        "Dispatch again then, or connect your own key and use byok."
    )
    retryable = True


def take_shared_run(*, org_id: str, run_id: str, now: datetime) -> None:
    """
    Hold one of the day's shared runs, in the transaction that saves the run.

    :raises SharedQuotaExceeded: if the day's runs are taken
    """
    for refusal in take_shared_runs(org_id=org_id, run_ids=[run_id], now=now).values():
        raise refusal


def take_shared_runs(*, org_id: str, run_ids: Sequence[str], now: datetime) -> dict[str, SharedQuotaExceeded]:
    """
    Hold some of the day's shared runs, in the transaction that saves them, and refuse those that are too many.

    One conditional UPDATE decides, so that any number of dispatches side by side never pass the limit.
    `now` is the database's clock; a run keeps the UTC day that it was admitted on. Returns the refused, by run id.
    """
    assert_open()
    day = now.astimezone(UTC).date()
    taken = list(run_ids)
    if not _take(org_id=org_id, day=day, count=len(taken)):
        SharedUsage.objects.bulk_create([SharedUsage(org_id=org_id, day=day)], ignore_conflicts=True)
        taken = [run_id for run_id in run_ids if _take(org_id=org_id, day=day, count=1)]
    insert_all(Hold, [Hold(run_id=run_id, org_id=org_id, day=day, created_at=now) for run_id in taken])
    if len(taken) == len(run_ids):
        return {}
    quota = _read(org_id=org_id, now=now)
    return {run_id: _exceeded(quota, now=now) for run_id in set(run_ids) - set(taken)}


def release_holds(*, spent: Mapping[str, bool]) -> None:
    """
    Let go of what runs have held, in the transaction that ends them. `spent` is by run id.

    A spent run stays counted on the day it was admitted; one that never reached the provider gives its
    slot back. Runs without a hold, and runs released before, change nothing.
    """
    assert_open()
    # A second release of the same run waits for the first, and then finds nothing.
    holds = delete_all(Hold, spent, returning=("run_id", "org_id", "day"))
    released = Counter((org_id, day) for _, org_id, day in holds)
    used = Counter((org_id, day) for run_id, org_id, day in holds if spent[run_id])
    for org_id, day in sorted(released):
        with connection.cursor() as cursor:
            cursor.execute(_RELEASE, [released[org_id, day], used[org_id, day], org_id, day.isoformat()])


def shared_quota(org: Org, now: datetime) -> SharedQuota:
    """Read how much of the day's shared runs is taken, in one query."""
    return _read(org_id=org.pk, now=now)


def require_room(quota: SharedQuota, *, now: datetime) -> None:
    """
    Judge a quota that was read, for a preview. A dispatch is judged by `take_shared_run`.

    :raises SharedQuotaExceeded: if nothing is left
    """
    if quota.used >= quota.limit:
        raise _exceeded(quota, now=now)


def limit_of(org_id: str | OuterRef) -> Coalesce:
    """The organization's own limit, else the platform's, else the one that the platform starts with."""
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


# Every shared call runs these two, and the ORM takes longer to put them together than the database to carry them out.
# The condition is that of `limit_of`, once more.
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
    resets_at = datetime.combine(day + timedelta(days=1), time.min, tzinfo=UTC)
    return SharedQuota(used=used, limit=limit, resets_at=resets_at)


def _exceeded(quota: SharedQuota, *, now: datetime) -> SharedQuotaExceeded:
    resets_at = quota.resets_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return SharedQuotaExceeded(
        used=quota.used,
        limit=quota.limit,
        resets_at=resets_at,
        extra={
            "used": quota.used,
            "limit": quota.limit,
            "resetsAt": resets_at,
            "retryAfter": max(1, math.ceil((quota.resets_at - now).total_seconds())),
        },
    )
