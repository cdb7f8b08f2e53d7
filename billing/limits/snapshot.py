"""An organization's current limits and balances, used to decide its dispatches."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db.models import F, OuterRef, Subquery
from django.db.models.functions import Now

from billing.limits import quota
from billing.limits.budget import Budget
from billing.limits.quota import SharedQuota
from billing.models import BudgetUsage, Entitlement, SharedUsage
from rensei.core.periods import end_of, month_of, start_of
from rensei.orgs import kill_switches, storage
from rensei.orgs.kill_switches import Stopped
from rensei.orgs.models import Org
from rensei.orgs.storage import Storage


@dataclass(frozen=True, kw_only=True)
class BillingSnapshot:
    """
    What an organization may use of the platform's key pools and storage, and what is left, by the database's clock.

    What is left is for a preview: a dispatch is decided by the conditional UPDATE that holds its share.
    """

    now: datetime
    entitlement: Entitlement | None
    shared_quota: SharedQuota
    budget: Budget | None
    stopped: Stopped
    storage: Storage


def snapshot_of(org: Org) -> BillingSnapshot:
    """Read the clock, entitlement, quota, budget, stored bytes and kill switches, in one query."""
    newest_day = SharedUsage.objects.filter(org=OuterRef("pk")).order_by("-day")
    found = (
        Org.objects.filter(pk=org.pk)
        .select_related("entitlement", "budget_usage", "stored_bytes")
        .annotate(
            # The same clock as in `core.clock.database_now`.
            read_at=Now(),
            switches=kill_switches.switches_of(),
            shared_limit=quota.limit_of(org.pk),
            shared_day=Subquery(newest_day.values("day")[:1]),
            shared_taken=Subquery(newest_day.annotate(taken=F("used") + F("held")).values("taken")[:1]),
        )
        .get()
    )
    now = found.read_at.astimezone(UTC)
    entitlement: Entitlement | None = getattr(found, "entitlement", None)
    return BillingSnapshot(
        now=now,
        entitlement=entitlement,
        shared_quota=SharedQuota(
            used=found.shared_taken if found.shared_day == now.date() else 0,
            limit=found.shared_limit,
            resets_at=start_of(now.date() + timedelta(days=1)),
        ),
        budget=_budget(entitlement, getattr(found, "budget_usage", None), now=now),
        stopped=kill_switches.read_stopped(found.switches),
        storage=storage.storage_of(getattr(found, "stored_bytes", None)),
    )


def _budget(entitlement: Entitlement | None, usage: BudgetUsage | None, *, now: datetime) -> Budget | None:
    if entitlement is None or entitlement.monthly_budget_picodollars is None:
        return None
    month = month_of(now)
    return Budget(
        used=usage.used if usage is not None and usage.month >= month else 0,
        held=usage.held if usage is not None else 0,
        limit=entitlement.monthly_budget_picodollars,
        resets_at=end_of(month),
    )
