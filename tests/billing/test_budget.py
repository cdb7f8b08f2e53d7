from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.test import Client
from rest_framework.test import APIClient

from billing.ledger.charges import Charge
from billing.limits import budget
from billing.limits.budget import MeteredBudgetExceeded, add_billed, budget_of, release_holds, require_room
from billing.models import BudgetHold, BudgetUsage, CostEvent, Entitlement, UsageDaily
from rensei.audit.models import AuditEvent
from rensei.core.bulk import insert_all
from rensei.core.clock import database_now
from rensei.core.periods import end_of, month_of
from rensei.core.transactions import durable
from rensei.core.usage import Usage
from rensei.orgs.models import Org, User
from tests.billing.conftest import NOON
from tests.billing.record import record_adjustment, record_charges

CENT = 10**10
NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture
def limit(acme: Org) -> Callable[[int | None], None]:
    def set_to(picodollars: int | None) -> None:
        Entitlement.objects.filter(org=acme).update(monthly_budget_picodollars=picodollars)

    return set_to


def hold(org: Org, run_id: str, picodollars: int, now: datetime = NOON) -> dict[str, MeteredBudgetExceeded]:
    """Hold for a run as its admission does, which saves the holds with the run."""
    holds, refused = budget.hold(org_id=org.pk, picodollars={run_id: picodollars}, now=now)
    insert_all(BudgetHold, holds)
    return refused


def take(org: Org, run_id: str, picodollars: int, now: datetime = NOON) -> None:
    with transaction.atomic():
        for refusal in hold(org, run_id, picodollars, now).values():
            raise refusal


def release(*run_ids: str) -> None:
    with transaction.atomic():
        release_holds(run_ids=run_ids)


def row() -> tuple[date, int, int]:
    usage = BudgetUsage.objects.get()
    return usage.month, usage.used, usage.held


class TestHold:
    def test_sets_the_most_that_a_run_may_cost_aside(self, acme: Org, limit: Callable[..., None]) -> None:
        limit(10 * CENT)

        take(acme, "run_1", 4 * CENT)

        assert row() == (date(2026, 3, 1), 0, 4 * CENT)
        assert BudgetHold.objects.get().picodollars == 4 * CENT

    def test_lets_the_last_picodollar_be_spent_and_no_more(self, acme: Org, limit: Callable[..., None]) -> None:
        limit(10 * CENT)
        take(acme, "run_1", 4 * CENT)
        take(acme, "run_2", 6 * CENT)

        with pytest.raises(MeteredBudgetExceeded):
            take(acme, "run_3", 1)

        assert row() == (date(2026, 3, 1), 0, 10 * CENT)
        assert BudgetHold.objects.count() == 2

    def test_says_what_is_used_and_held_and_what_to_do(
        self, acme: Org, limit: Callable[..., None], charge: Callable[..., CostEvent], settings: Any
    ) -> None:
        settings.RENSEI_SUPPORT_EMAIL = "ops@platform.test"
        limit(10 * CENT)
        charge()
        take(acme, "run_1", 9 * CENT)

        with pytest.raises(MeteredBudgetExceeded) as refused:
            take(acme, "run_2", 2 * CENT)

        assert refused.value.status == 402
        assert refused.value.extra == {
            "used": "0.007500",
            "held": "0.090000",
            "limit": "0.100000",
            "resetsAt": "2026-04-01T00:00:00Z",
        }
        assert refused.value.detail == (
            "This run may cost up to $0.020000, which no longer fits: of the organization's budget of $0.100000 for "
            "this month, $0.007500 are used and $0.090000 are held by runs that have not ended. Lower maxTokens, wait "
            "for those runs to end, use byok with a key of your own, or ask your Rensei operator (ops@platform.test) "
            "for a higher budget. The budget resets at 2026-04-01T00:00:00Z."
        )

    def test_leaves_nothing_when_it_refuses_the_first(self, acme: Org, limit: Callable[..., None]) -> None:
        limit(0)

        with pytest.raises(MeteredBudgetExceeded):
            take(acme, "run_1", 1)

        assert not BudgetUsage.objects.exists()
        assert not BudgetHold.objects.exists()

    def test_holds_without_a_budget_so_that_a_later_one_counts_it(self, acme: Org, limit: Callable[..., None]) -> None:
        take(acme, "run_1", 5 * CENT)
        limit(8 * CENT)

        with pytest.raises(MeteredBudgetExceeded):
            take(acme, "run_2", 4 * CENT)

    def test_counts_each_organization_apart(self, acme: Org, eve: Any, limit: Callable[..., None]) -> None:
        limit(CENT)
        take(acme, "run_1", CENT)

        take(Org.objects.get(slug="evil"), "run_2", CENT)

        assert BudgetUsage.objects.for_org(acme).get().held == CENT

    def test_refuses_a_second_hold_of_a_run(self, acme: Org) -> None:
        take(acme, "run_1", CENT)

        with pytest.raises(IntegrityError):
            take(acme, "run_1", CENT)

        assert row()[2] == CENT

    def test_takes_two_queries(self, acme: Org, django_assert_num_queries: Callable[..., Any]) -> None:
        take(acme, "run_1", 1)

        with durable(), django_assert_num_queries(2):
            hold(acme, "run_2", 1)

    def test_begins_anew_with_the_month(
        self, acme: Org, limit: Callable[..., None], charge: Callable[..., CostEvent]
    ) -> None:
        limit(CENT)
        charge(occurred_at=NEW_YEAR - timedelta(microseconds=1))

        with pytest.raises(MeteredBudgetExceeded) as refused:
            take(acme, "run_1", CENT, now=NEW_YEAR - timedelta(microseconds=1))
        take(acme, "run_1", CENT, now=NEW_YEAR)

        assert refused.value.extra["resetsAt"] == "2027-01-01T00:00:00Z"
        assert row() == (date(2027, 1, 1), 0, CENT)

    def test_counts_runs_that_are_live_over_the_end_of_the_month(self, acme: Org, limit: Callable[..., None]) -> None:
        limit(10 * CENT)
        take(acme, "run_1", 8 * CENT, now=NEW_YEAR - timedelta(seconds=1))

        with pytest.raises(MeteredBudgetExceeded):
            take(acme, "run_2", 3 * CENT, now=NEW_YEAR)

    def test_does_not_go_back_to_a_month_that_is_over(self, acme: Org) -> None:
        take(acme, "run_1", CENT, now=NEW_YEAR)

        take(acme, "run_2", CENT, now=NEW_YEAR - timedelta(seconds=1))

        assert row() == (date(2027, 1, 1), 0, 2 * CENT)


class TestReleaseHolds:
    def test_gives_everything_back(self, acme: Org) -> None:
        take(acme, "run_1", CENT)
        take(acme, "run_2", 2 * CENT)

        release("run_1")

        assert row() == (date(2026, 3, 1), 0, 2 * CENT)
        assert BudgetHold.objects.get().run_id == "run_2"

    def test_changes_nothing_the_second_time(self, acme: Org) -> None:
        take(acme, "run_1", CENT)
        release("run_1")

        release("run_1", "run_without_a_hold")

        assert row()[2] == 0


class TestAddBilled:
    def test_counts_charges_as_used_with_and_without_a_budget(
        self, charge: Callable[..., CostEvent], limit: Callable[..., None]
    ) -> None:
        first = charge()
        limit(CENT)
        second = charge()

        assert row()[1] == first.billed_picodollars + second.billed_picodollars

    def test_leaves_out_what_is_not_billed(self, charge: Callable[..., CostEvent]) -> None:
        charge(billed=False, estimated=True)
        charge(auth_mode="byok")

        assert not BudgetUsage.objects.exists()

    def test_adds_what_a_late_settlement_bills(self, charge: Callable[..., CostEvent]) -> None:
        estimate = charge(billed=False, estimated=True)

        with transaction.atomic():
            line = record_adjustment(
                charge=estimate, usage=Usage(input_tokens=1100, output_tokens=100), estimated=False, billed=True,
                occurred_at=NOON,
            )  # fmt: skip

        assert row()[1] == line.billed_picodollars == 8_000_000_000

    def test_takes_back_what_a_correction_takes_back(self, charge: Callable[..., CostEvent]) -> None:
        line = charge()

        with transaction.atomic():
            record_adjustment(charge=line, usage=Usage(), estimated=False, billed=True, occurred_at=NOON)

        assert row()[1] == 0

    def test_begins_anew_with_the_month_and_leaves_a_past_one_alone(self, charge: Callable[..., CostEvent]) -> None:
        charge(occurred_at=NEW_YEAR - timedelta(days=1))
        line = charge(occurred_at=NEW_YEAR)

        charge(occurred_at=NEW_YEAR - timedelta(days=1))

        assert row() == (date(2027, 1, 1), line.billed_picodollars, 0)

    def test_stays_exact_beyond_what_a_database_integer_holds(
        self, acme: Org, charge: Callable[..., CostEvent], limit: Callable[..., None]
    ) -> None:
        dear = Usage(output_tokens=300_000_000_000)
        line, _ = charge(usage=dear), charge(usage=dear, occurred_at=NOON + timedelta(days=1))

        assert row() == (date(2026, 3, 1), 15 * 10**18, 0)
        assert 15 * 10**18 > 2**63

        take(acme, "run_1", CENT)
        limit(9_000_000 * 10**12)

        with pytest.raises(MeteredBudgetExceeded):
            take(acme, "run_2", CENT)

        with transaction.atomic():
            record_adjustment(charge=line, usage=Usage(), estimated=False, billed=True, occurred_at=NOON)
        take(acme, "run_2", CENT)

        assert row() == (date(2026, 3, 1), 75 * 10**17, 2 * CENT)

    def test_holds_more_than_a_database_integer_holds(self, acme: Org, limit: Callable[..., None]) -> None:
        for number in range(3):
            take(acme, f"run_{number}", 2**62)
        limit(9_000_000 * 10**12)

        with pytest.raises(MeteredBudgetExceeded):
            take(acme, "run_4", 1)
        with transaction.atomic():
            release_holds(run_ids=["run_0", "run_2"])
        take(acme, "run_4", 1)

        assert BudgetUsage.objects.get(org=acme).held == 2**62 + 1

    def test_is_what_the_roll_ups_say_of_the_month(
        self, make_charge: Callable[..., Charge], acme: Org, eve: Any
    ) -> None:
        evil = Org.objects.get(slug="evil").pk
        months = [NOON - timedelta(days=31), NOON, NOON + timedelta(days=1)]
        with transaction.atomic():
            record_charges(
                make_charge(org_id=org, occurred_at=moment, usage=Usage(output_tokens=place + 1))
                for org in (acme.pk, evil)
                for place, moment in enumerate(months)
            )

        for usage in BudgetUsage.objects.all():
            days = UsageDaily.objects.filter(org_id=usage.org_id, day__gte=usage.month)
            assert usage.used == sum(day.billed_picodollars for day in days) == 5 * 25_000_000
        assert BudgetUsage.objects.count() == 2

    def test_asks_nothing_of_the_database_where_nothing_is_billed(
        self, db: None, django_assert_num_queries: Callable[..., Any]
    ) -> None:
        with transaction.atomic(), django_assert_num_queries(0):
            add_billed([CostEvent(billed_picodollars=0)])


class TestBudgetOf:
    def test_is_none_without_a_budget(self, acme: Org, charge: Callable[..., CostEvent]) -> None:
        charge()

        assert budget_of(acme, NOON) is None

    def test_says_what_is_used_and_held_in_one_query(
        self,
        acme: Org,
        limit: Callable[..., None],
        charge: Callable[..., CostEvent],
        django_assert_num_queries: Callable[..., Any],
    ) -> None:
        limit(CENT)
        line = charge()
        take(acme, "run_1", 7)

        with django_assert_num_queries(1):
            budget = budget_of(acme, NOON)

        assert budget is not None
        assert (budget.used, budget.held, budget.limit) == (line.billed_picodollars, 7, CENT)
        assert budget.resets_at == datetime(2026, 4, 1, tzinfo=UTC)

    def test_is_whole_where_nothing_was_ever_spent(self, acme: Org, limit: Callable[..., None]) -> None:
        limit(CENT)

        budget = budget_of(acme, NOON)

        assert budget is not None
        assert (budget.used, budget.held) == (0, 0)

    def test_forgets_the_month_before_but_not_what_is_held(
        self, acme: Org, limit: Callable[..., None], charge: Callable[..., CostEvent]
    ) -> None:
        limit(CENT)
        charge()
        take(acme, "run_1", 7)

        budget = budget_of(acme, datetime(2026, 4, 1, tzinfo=UTC))

        assert budget is not None
        assert (budget.used, budget.held) == (0, 7)


class TestRequireRoom:
    def test_judges_like_a_dispatch(self, acme: Org, limit: Callable[..., None]) -> None:
        limit(10)
        take(acme, "run_1", 4)
        budget = budget_of(acme, NOON)
        assert budget is not None

        require_room(budget, picodollars=6)

        with pytest.raises(MeteredBudgetExceeded) as foreseen:
            require_room(budget, picodollars=7)
        with pytest.raises(MeteredBudgetExceeded) as refused:
            take(acme, "run_2", 7)
        assert (foreseen.value.detail, foreseen.value.extra) == (refused.value.detail, refused.value.extra)


class TestRest:
    def test_says_what_is_left_of_the_budget(
        self, acme: Org, ada: User, api_as: Callable[..., APIClient], limit: Callable[..., None], make_charge: Any
    ) -> None:
        now = database_now()
        limit(CENT)
        with transaction.atomic():
            record_charges([make_charge(occurred_at=now)])
        take(acme, "run_1", 7, now=now)

        answer = api_as(ada).get("/api/v1/entitlements").json()

        assert answer["budget"] == {
            "limitUsd": "0.010000",
            "usedUsd": "0.007500",
            "heldUsd": "0.000000000007",
            "resetsAt": end_of(month_of(now)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


class TestPage:
    def test_shows_the_budget_where_there_is_one(
        self, acme: Org, ada: User, page_as: Callable[[User], Client], limit: Callable[..., None]
    ) -> None:
        page = page_as(ada)
        without = page.get("/o/acme/usage").content.decode()
        limit(5 * CENT)
        take(acme, "run_1", 4 * CENT, now=database_now())

        shown = page.get("/o/acme/usage").content.decode()

        assert "Metered budget" not in without
        assert "$0.00 of $0.05 used, up to $0.04 held by live runs" in shown
        assert "80 percent of the metered budget" in shown


class TestAdmin:
    URL = "/admin/billing/entitlement/"

    def test_takes_the_budget_in_dollars(self, acme: Org, grace: User, page_as: Callable[[User], Client]) -> None:
        admin = page_as(grace)
        page = f"{self.URL}{acme.pk}/change/"

        admin.post(page, {"metered_enabled": "on", "monthly_budget_usd": "25.5"})

        entitlement = Entitlement.objects.get(org=acme)
        assert (entitlement.metered_enabled, entitlement.monthly_budget_picodollars) == (True, 25_500_000_000_000)
        assert 'value="25.500000"' in admin.get(page).content.decode()
        assert AuditEvent.objects.get(action="entitlement.changed").detail == {
            "metered_enabled": True,
            "monthly_budget_picodollars": 25_500_000_000_000,
        }

    def test_takes_it_away_when_it_is_emptied(
        self, acme: Org, grace: User, page_as: Callable[[User], Client], limit: Callable[..., None]
    ) -> None:
        limit(CENT)

        page_as(grace).post(f"{self.URL}{acme.pk}/change/", {"monthly_budget_usd": ""})

        assert Entitlement.objects.get(org=acme).monthly_budget_picodollars is None

    @pytest.mark.parametrize("typed", ["-1", "9000001", "0.0000000000001", "much"])
    def test_refuses_what_is_no_budget(
        self, acme: Org, grace: User, page_as: Callable[[User], Client], limit: Callable[..., None], typed: str
    ) -> None:
        limit(CENT)

        answer = page_as(grace).post(f"{self.URL}{acme.pk}/change/", {"monthly_budget_usd": typed})

        assert answer.status_code == 200
        assert Entitlement.objects.get(org=acme).monthly_budget_picodollars == CENT


@pytest.mark.django_db(transaction=True)
class TestManyDispatchesAtOnce:
    def test_never_pass_the_budget(
        self, acme: Org, limit: Callable[..., None], make_charge: Callable[..., Charge]
    ) -> None:
        """Eight dispatchers hold, and half of their runs end and are billed less than was held, all at once."""
        worst, real = 10_000_000_000, 7_500_000_000  # What the charge of the fixture comes to is below the worst case.
        limit(20 * worst)
        highest = []

        def contend(place: int) -> tuple[int, int]:
            held = settled = 0
            try:
                for number in range(8):
                    run_id = f"run_{place}_{number}"
                    with durable():
                        refused = hold(acme, run_id, worst)
                    if refused:
                        continue
                    held += 1
                    if number % 2:
                        with durable():
                            record_charges([make_charge(run_id=run_id)])
                            release_holds(run_ids=[run_id])
                        settled += 1
                    _, used, live = row()
                    highest.append(used + live)
            finally:
                connection.close()
            return held, settled

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(contend, range(8)))

        held, settled = (sum(column) for column in zip(*results, strict=True))
        assert row() == (date(2026, 3, 1), settled * real, (held - settled) * worst)
        assert max(highest) <= 20 * worst
        assert held >= 20
        assert held < 64
        assert sum(BudgetHold.objects.values_list("picodollars", flat=True)) == (held - settled) * worst

    def test_release_a_run_once(self, acme: Org) -> None:
        for number in range(10):
            take(acme, f"run_{number}", CENT)

        def let_go(_: int) -> None:
            try:
                release(*(f"run_{number}" for number in range(9)))
            finally:
                connection.close()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(let_go, range(4)))

        assert row()[2] == CENT
