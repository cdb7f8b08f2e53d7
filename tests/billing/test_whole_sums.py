"""Sums that pass 2^63, from ledger lines through every place that adds them up."""

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.integrity import reconciliation
from billing.ledger import reports
from billing.models import BudgetUsage, CostEvent, Statement, UsageDaily
from billing.statements import statements
from catalog.pricing import UnitPrices
from rensei.core.stored_types import wrongly_stored
from rensei.core.usage import Usage
from rensei.orgs.models import Org, User
from tests.billing.conftest import NOON
from tests.billing.sums import ledger_by_key, roll_ups_by_key
from tests.drawn import examples

# A line of nearly 2^63 picodollars, so that two pass it.
DEAR = UnitPrices(
    above_prompt_tokens=0,
    input=9 * 10**11,
    output=9 * 10**11,
    cache_write_5m=1,
    cache_write_1h=1,
    cache_read=1,
    web_search=None,
)
TOKENS = 10**7
MARCH = date(2026, 3, 1)


@pytest.mark.django_db
class TestSumsBeyond64Bits:
    @settings(max_examples=examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(counts=st.lists(st.integers(TOKENS - 1000, TOKENS), min_size=2, max_size=6))
    def test_are_exact_in_every_place(
        self, acme: Org, grace: User, charge: Callable[..., CostEvent], counts: list[int]
    ) -> None:
        with connection.cursor() as cursor:
            for table in ("billing_usagedaily", "billing_budgetusage"):
                cursor.execute(f"DELETE FROM {table}")
        before = CostEvent.objects.count()
        lines = [
            charge(usage=Usage(output_tokens=count), prices=DEAR, occurred_at=NOON + timedelta(seconds=before + place))
            for place, count in enumerate(counts)
        ]
        expected = sum(count * DEAR.output for count in counts)
        assert expected > 2**63

        assert UsageDaily.objects.get().amount_picodollars == expected
        assert BudgetUsage.objects.get().used == expected
        month = reports.month_to_date(acme, NOON + timedelta(hours=1))
        assert (month.amount_picodollars, month.billed_picodollars) == (expected, expected)
        (summary,) = statements.summaries(acme, now=NOON)
        assert summary.total_picodollars == expected
        assert lines[0].amount_picodollars == counts[0] * DEAR.output
        assert [wrong for model in (UsageDaily, BudgetUsage, CostEvent) for wrong in wrongly_stored(model)] == []


@pytest.mark.django_db(transaction=True)
class TestAStatementBeyond64Bits:
    def test_is_closed_exactly_and_agrees_with_the_ledger(
        self, acme: Org, grace: User, charge: Callable[..., CostEvent]
    ) -> None:
        for second in range(3):
            charge(usage=Usage(output_tokens=TOKENS), prices=DEAR, occurred_at=NOON + timedelta(seconds=second))

        statements.close(org_ids=[acme.pk], actor_user=grace)

        closed = Statement.objects.get(org=acme, month=MARCH)
        assert closed.total_picodollars == 3 * TOKENS * DEAR.output > 2**63
        assert roll_ups_by_key() == ledger_by_key()
        assert list(reconciliation.sum_differences()) == []
        assert list(wrongly_stored(Statement)) == []

    @pytest.mark.parametrize("path", ["/admin/billing/usagedaily/?o=-9", "/admin/billing/budgetusage/?o=3", "/admin/"])
    def test_is_shown_in_the_admin(
        self, grace: User, charge: Callable[..., CostEvent], page_as: Callable[..., Any], path: str
    ) -> None:
        for second in range(2):
            charge(usage=Usage(output_tokens=TOKENS), prices=DEAR, occurred_at=NOON + timedelta(seconds=second))

        assert page_as(grace).get(path).status_code == 200
