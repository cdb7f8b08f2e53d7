"""How an organization stands: one query that says what the quota, the budget and the entitlement say apart."""

from datetime import timedelta

import pytest

from billing.limits import budget, quota
from billing.limits.snapshot import snapshot_of
from billing.models import BillingSetting, BudgetUsage, Entitlement, SharedUsage
from rensei.core.clock import database_now
from rensei.core.periods import month_of


@pytest.mark.django_db
class TestStandingOf:
    def test_says_what_the_parts_say_in_one_query(self, acme, django_assert_num_queries):
        today = database_now().date()
        Entitlement.objects.update(metered_enabled=True, shared_runs_per_day=7, monthly_budget_picodollars=1000)
        SharedUsage.objects.create(org=acme, day=today - timedelta(days=1), used=5)
        SharedUsage.objects.create(org=acme, day=today, used=2, held=1)
        BudgetUsage.objects.create(org=acme, month=month_of(database_now()), used=300, held=200)

        with django_assert_num_queries(1):
            standing = snapshot_of(acme)

        assert standing.entitlement == Entitlement.objects.get()
        assert standing.shared_quota == quota.shared_quota(acme, now=standing.now)
        assert (standing.shared_quota.used, standing.shared_quota.limit) == (3, 7)
        assert standing.budget == budget.budget_of(acme, now=standing.now)
        assert standing.budget is not None
        assert (standing.budget.used, standing.budget.held) == (300, 200)

    def test_counts_nothing_of_yesterday_or_of_last_month(self, acme):
        now = database_now()
        Entitlement.objects.update(monthly_budget_picodollars=1000)
        BillingSetting.objects.update_or_create(defaults={"shared_runs_per_day": 4})
        SharedUsage.objects.create(org=acme, day=now.date() - timedelta(days=1), used=5)
        BudgetUsage.objects.create(org=acme, month=month_of(now - timedelta(days=40)), used=300, held=200)

        standing = snapshot_of(acme)

        assert standing.shared_quota == quota.shared_quota(acme, now=standing.now)
        assert (standing.shared_quota.used, standing.shared_quota.limit) == (0, 4)
        assert standing.budget == budget.budget_of(acme, now=standing.now)
        assert standing.budget is not None
        assert standing.budget.used == 0

    def test_is_read_by_the_databases_clock(self, acme):
        before = database_now()

        standing = snapshot_of(acme)

        assert before <= standing.now <= database_now()

    def test_is_whole_where_nothing_has_been_used_or_granted(self, acme):
        Entitlement.objects.all().delete()

        standing = snapshot_of(acme)

        assert standing.entitlement is None
        assert standing.budget is None
        assert standing.shared_quota == quota.shared_quota(acme, now=standing.now)
