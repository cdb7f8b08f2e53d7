"""What shared runs may cost the platform in a day: for each organization, and for all together."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction

from billing.integrity import reconciliation
from billing.limits.quota import SharedQuotaExceeded, release_holds, take_shared_run, take_shared_runs
from billing.models import BillingSetting, CostEvent, Entitlement, Hold, SharedSpending, SharedUsage
from rensei.core.auth_modes import AuthMode
from rensei.core.money import dollars
from rensei.orgs.models import Org, User

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
DOLLAR = 10**12


def take(org: Org, run_id: str, whole: int, now: datetime = NOON) -> None:
    with transaction.atomic():
        take_shared_run(org_id=org.pk, run_id=run_id, now=now, picodollars=whole * DOLLAR)


def end(org: Org, run_id: str, whole: int | None, now: datetime = NOON) -> None:
    amount = None if whole is None else whole * DOLLAR
    line = CostEvent(org_id=org.pk, run_id=run_id, auth_mode=AuthMode.SHARED, amount_picodollars=amount)
    with transaction.atomic():
        release_holds(spent={run_id: True}, now=now, lines=[line])


def rows() -> dict[str, tuple[int, int]]:
    return {
        "all" if row.org_id is None else row.org.slug: (row.used // DOLLAR, row.held // DOLLAR)
        for row in SharedSpending.objects.select_related("org")
    }


@pytest.fixture
def evil(eve: User) -> Org:
    return Org.objects.get(slug="evil")


@pytest.fixture
def amounts(db: None) -> Any:
    def set_to(*, org: int, platform: int) -> None:
        BillingSetting.objects.update_or_create(
            pk=1,
            defaults={
                "shared_org_picodollars_per_day": org * DOLLAR,
                "shared_platform_picodollars_per_day": platform * DOLLAR,
            },
        )

    return set_to


class TestTake:
    def test_holds_the_most_that_a_run_may_cost(self, acme: Org) -> None:
        take(acme, "run_1", 2)

        assert rows() == {"all": (0, 2), "acme": (0, 2)}
        assert Hold.objects.get().picodollars == 2 * DOLLAR

    def test_refuses_with_both_figures_and_leaves_nothing_behind(self, acme: Org, amounts: Any) -> None:
        amounts(org=5, platform=100)
        take(acme, "run_1", 3)
        end(acme, "run_1", 1)
        take(acme, "run_2", 2)

        with pytest.raises(SharedQuotaExceeded) as refused:
            take(acme, "run_3", 3)

        assert refused.value.extra["usedUsd"] == dollars(DOLLAR)
        assert (refused.value.extra["heldUsd"], refused.value.extra["limitUsd"]) == (
            dollars(2 * DOLLAR),
            dollars(5 * DOLLAR),
        )
        assert (refused.value.extra["used"], refused.value.extra["limit"]) == (2, 20)
        assert "may cost up to $3" in refused.value.detail
        assert f"${dollars(5 * DOLLAR)} that the organization's shared runs" in refused.value.detail
        assert rows() == {"all": (1, 2), "acme": (1, 2)}
        assert [hold.run_id for hold in Hold.objects.all()] == ["run_2"]

    def test_refuses_what_all_organizations_together_may_not_cost(self, acme: Org, evil: Org, amounts: Any) -> None:
        amounts(org=50, platform=4)
        take(acme, "run_1", 3)

        with pytest.raises(SharedQuotaExceeded, match="all shared runs together"):
            take(evil, "run_2", 2)
        take(evil, "run_3", 1)

        assert rows() == {"all": (0, 4), "acme": (0, 3), "evil": (0, 1)}

    def test_takes_the_amount_of_the_organization_before_the_platforms(self, acme: Org, amounts: Any) -> None:
        amounts(org=1, platform=100)
        Entitlement.objects.filter(org=acme).update(shared_picodollars_per_day=9 * DOLLAR)

        take(acme, "run_1", 9)

        assert rows()["acme"] == (0, 9)

    def test_gives_the_amount_back_where_the_runs_are_used_up(self, acme: Org) -> None:
        Entitlement.objects.filter(org=acme).update(shared_runs_per_day=1)
        take(acme, "run_1", 1)

        with transaction.atomic(), pytest.raises(SharedQuotaExceeded, match="1 of its 1 shared runs"):
            take_shared_run(org_id=acme.pk, run_id="run_2", now=NOON, picodollars=DOLLAR)

        assert rows() == {"all": (0, 1), "acme": (0, 1)}

    def test_begins_anew_with_the_day_and_goes_on_holding(self, acme: Org, amounts: Any) -> None:
        amounts(org=5, platform=5)
        take(acme, "run_1", 3)
        end(acme, "run_1", 3)
        take(acme, "run_2", 2)

        take(acme, "run_3", 3, now=NOON + timedelta(days=1))

        assert rows() == {"all": (0, 5), "acme": (0, 5)}


class TestAGroup:
    @pytest.mark.parametrize("full", ["org", "platform", "runs"])
    def test_takes_what_fits_where_one_of_the_limits_does_not_hold_all(
        self, acme: Org, amounts: Any, full: str
    ) -> None:
        most = {"org": 50, "platform": 50, "runs": 50, full: 2}
        amounts(org=most["org"], platform=most["platform"])
        Entitlement.objects.filter(org=acme).update(shared_runs_per_day=most["runs"])
        wanted = {f"run_{number}": DOLLAR for number in range(3)}

        with transaction.atomic():
            holds, refused = take_shared_runs(org_id=acme.pk, picodollars=wanted, now=NOON)

        assert list(refused) == ["run_2"]
        assert rows() == {"all": (0, 2), "acme": (0, 2)}
        assert [hold.run_id for hold in holds] == ["run_0", "run_1"]
        assert SharedUsage.objects.get().held == 2


class TestEnd:
    def test_counts_what_a_run_cost_and_lets_go_of_the_rest(self, acme: Org) -> None:
        take(acme, "run_1", 5)

        end(acme, "run_1", 2)
        end(acme, "run_1", 0)

        assert rows() == {"all": (2, 0), "acme": (2, 0)}
        assert list(reconciliation.spending_differences()) == []

    def test_counts_what_was_held_where_the_price_is_not_known(self, acme: Org) -> None:
        take(acme, "run_1", 5)

        end(acme, "run_1", None)

        assert rows() == {"all": (5, 0), "acme": (5, 0)}

    def test_tells_where_a_hold_and_the_sum_differ(self, acme: Org) -> None:
        take(acme, "run_1", 5)
        Hold.objects.all().delete()

        found = list(reconciliation.spending_differences())

        assert sorted(difference.org for difference in found) == sorted([acme.pk, "platform"])


@pytest.mark.django_db(transaction=True)
class TestSideBySide:
    def test_never_holds_more_than_the_amounts(self, acme: Org, evil: Org, amounts: Any) -> None:
        amounts(org=7, platform=10)
        Entitlement.objects.update(shared_runs_per_day=1000)

        def run(number: int) -> bool:
            try:
                take((acme, evil)[number % 2], f"run_{number}", 1)
            except SharedQuotaExceeded:
                return False
            else:
                return True
            finally:
                connection.close()

        with ThreadPoolExecutor(8) as pool:
            granted = sum(pool.map(run, range(40)))

        held = rows()
        assert granted == 10 == held["all"][1] == held["acme"][1] + held["evil"][1]
        assert max(held["acme"][1], held["evil"][1]) <= 7
        assert sum(row.held for row in SharedUsage.objects.all()) == 10
