from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import date, timedelta
from fractions import Fraction
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.integrity import reconciliation
from billing.ledger import capacity
from billing.ledger.charges import Charge
from billing.models import CostEvent, UsageDaily
from catalog.models import CatalogEntry
from catalog.pricing import UnitPrices, band_for, bands_in_force
from rensei.core.auth_modes import AuthMode
from rensei.core.ids import new_id
from rensei.core.money import dollars
from rensei.core.usage import Usage
from rensei.orgs.models import Org, User
from tests.billing.conftest import NOON, PRICES
from tests.billing.ledger_triggers import triggers_lifted
from tests.billing.record import capacity_line, record_adjustment, record_charges
from tests.billing.sums import ledger_by_key, roll_ups_by_key
from tests.drawn import examples

in_one_test = settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
tokens = st.integers(0, 2_000_000)
usages = st.builds(
    Usage,
    input_tokens=tokens,
    output_tokens=tokens,
    cache_read_tokens=tokens,
    cache_write_5m_tokens=tokens,
    cache_write_1h_tokens=tokens,
    thinking_tokens=tokens,
    web_search_requests=st.integers(0, 20),
)
# Microdollars for a million tokens, to five hundred dollars.
price = st.integers(0, 500_000_000)
unit_prices = st.builds(
    UnitPrices,
    above_prompt_tokens=st.just(0),
    input=price,
    output=price,
    cache_write_5m=price,
    cache_write_1h=price,
    cache_read=price,
    web_search=st.none() | st.just(10_000_000_000),
)


def exact_dollars(usage: Usage, prices: UnitPrices) -> Fraction:
    """Price a call with fractions of dollars for a million tokens: another way than the ledger's."""
    per_million = [
        (usage.input_tokens, prices.input),
        (usage.output_tokens, prices.output),
        (usage.cache_read_tokens, prices.cache_read),
        (usage.cache_write_5m_tokens, prices.cache_write_5m),
        (usage.cache_write_1h_tokens, prices.cache_write_1h),
    ]
    amount = sum((Fraction(count, 10**6) * Fraction(price, 10**6) for count, price in per_million), Fraction())
    return amount + usage.web_search_requests * Fraction(prices.web_search or 0, 10**12)


class TestRecordCharges:
    @pytest.mark.parametrize(
        ("model_id", "usage", "amount"),
        [
            # 1,000 in at $15 and 500 out at $75 for a million.
            ("claude-opus-4-1-20250514", Usage(input_tokens=1000, output_tokens=500), "0.052500"),
            # 3 in at $3, 2,000 written for 5 minutes at $3.75, 10 out at $15.
            (
                "claude-sonnet-4-5-20250929",
                Usage(input_tokens=3, cache_write_5m_tokens=2000, output_tokens=10),
                "0.007659",
            ),
            # The same prompt again: 2,000 read at $0.30.
            ("claude-sonnet-4-5-20250929", Usage(input_tokens=3, cache_read_tokens=2000, output_tokens=10), "0.000759"),
            # Written for an hour at $6, and two searches at a cent each.
            ("claude-sonnet-4-5-20250929", Usage(cache_write_1h_tokens=1000, web_search_requests=2), "0.026000"),
            # Below the band, $0.10 and $0.125; above it every token costs five times as much.
            ("claude-haiku-5-5", Usage(input_tokens=99_999, cache_write_5m_tokens=1), "0.010000025"),
            ("claude-haiku-5-5", Usage(input_tokens=100_000, cache_write_5m_tokens=1), "0.050000625"),
            # Thinking is a part of the output, and is not paid for twice.
            ("claude-opus-5-5", Usage(output_tokens=1000, thinking_tokens=900), "0.020000"),
            ("claude-opus-5-5", Usage(), "0.000000"),
        ],
    )
    def test_prices_a_call_by_the_published_list(
        self, catalog: None, charge: Callable[..., CostEvent], model_id: str, usage: Usage, amount: str
    ) -> None:
        entry = CatalogEntry.objects.get(org=None, model_id=model_id)
        bands = bands_in_force(entry, moment=NOON + timedelta(days=254))

        line = charge(usage=usage, prices=band_for(bands, prompt_tokens=usage.prompt_tokens))

        assert dollars(line.amount_picodollars) == amount

    @in_one_test
    @given(calls=st.lists(st.tuples(usages, unit_prices, st.sampled_from(["", "apollo"])), min_size=1, max_size=5))
    def test_rounds_nothing_and_rolls_up_exactly(
        self, make_charge: Callable[..., Charge], calls: list[tuple[Usage, UnitPrices, str]]
    ) -> None:
        charges = [make_charge(usage=usage, prices=prices, project_id=slug) for usage, prices, slug in calls]

        lines = record_charges(charges)

        for line, (usage, prices, _) in zip(lines, calls, strict=True):
            line.refresh_from_db()
            if prices.web_search is None and usage.web_search_requests:
                assert line.amount_picodollars is None
            else:
                assert line.amount_picodollars == exact_dollars(usage, prices) * 10**12
        assert ledger_by_key() == roll_ups_by_key()

    def test_leaves_an_unpriced_call_without_an_amount(self, charge: Callable[..., CostEvent]) -> None:
        line = charge(auth_mode="byok", prices=None)

        line.refresh_from_db()
        row = UsageDaily.objects.get()
        assert line.amount_picodollars is None
        assert (row.calls, row.unpriced, row.input_tokens, row.amount_picodollars) == (1, 1, 1000, 0)

    def test_needs_no_search_price_where_nothing_was_searched(self, charge: Callable[..., CostEvent]) -> None:
        line = charge(prices=replace(PRICES, web_search=None))

        assert line.amount_picodollars == 7_500_000_000
        assert line.web_search_picodollars is None

    @pytest.mark.parametrize(("mode", "billed"), [(mode, mode is AuthMode.METERED) for mode in AuthMode])
    def test_bills_metered_alone(self, charge: Callable[..., CostEvent], mode: AuthMode, billed: bool) -> None:
        charge(auth_mode=mode)

        row = UsageDaily.objects.get()
        assert row.amount_picodollars == 7_500_000_000
        assert row.billed_picodollars == (7_500_000_000 if billed else 0)

    def test_refuses_a_second_charge_of_an_attempt(self, charge: Callable[..., CostEvent]) -> None:
        first = charge()
        rolled_up = roll_ups_by_key()

        with pytest.raises(IntegrityError):
            charge(attempt_id=first.attempt_id)

        assert CostEvent.objects.count() == 1
        assert roll_ups_by_key() == rolled_up

    @pytest.mark.django_db(transaction=True)
    def test_needs_an_open_transaction(self, make_charge: Callable[..., Charge]) -> None:
        with pytest.raises(AssertionError):
            record_charges([make_charge()])

    def test_takes_few_queries(
        self, make_charge: Callable[..., Charge], django_assert_num_queries: Callable[..., Any]
    ) -> None:
        record_charges([make_charge()])

        # One insert of all lines, one update for the roll-up that they share, and one for the month's use.
        with transaction.atomic(), django_assert_num_queries(3):
            record_charges([make_charge(), make_charge(), make_charge()])


class TestRecordAdjustment:
    def test_bills_an_estimate_whole_when_it_settles(self, charge: Callable[..., CostEvent]) -> None:
        estimate = charge(billed=False, estimated=True)

        line = record_adjustment(
            charge=estimate,
            usage=Usage(input_tokens=900, output_tokens=120),
            estimated=False,
            billed=True,
            occurred_at=NOON,
        )

        assert (line.input_tokens, line.output_tokens) == (-100, 20)
        assert line.amount_picodollars == 0
        assert line.billed_picodollars == 7_500_000_000
        row = UsageDaily.objects.get()
        assert (row.calls, row.input_tokens, row.output_tokens) == (1, 900, 120)
        assert row.amount_picodollars == row.billed_picodollars == 7_500_000_000

    def test_takes_a_bill_back(self, charge: Callable[..., CostEvent]) -> None:
        billed = charge()

        record_adjustment(charge=billed, usage=Usage(), estimated=False, billed=False, occurred_at=NOON)

        row = UsageDaily.objects.get()
        assert (row.amount_picodollars, row.billed_picodollars, row.calls) == (0, 0, 1)

    def test_counts_on_the_day_it_is_written(self, charge: Callable[..., CostEvent]) -> None:
        estimate = charge(billed=False, estimated=True)
        before = UsageDaily.objects.values().get()

        record_adjustment(
            charge=estimate,
            usage=Usage(input_tokens=2000),
            estimated=False,
            billed=True,
            occurred_at=NOON + timedelta(days=1),
        )

        assert UsageDaily.objects.values().get(day=date(2026, 3, 14)) == before
        assert UsageDaily.objects.get(day=date(2026, 3, 15)).billed_picodollars == 10_000_000_000

    def test_moves_a_call_to_the_band_it_was_really_in(self, charge: Callable[..., CostEvent]) -> None:
        above = replace(PRICES, above_prompt_tokens=100_000, input=25_000_000)
        estimate = charge(billed=False, estimated=True, usage=Usage(input_tokens=99_000))

        record_adjustment(
            charge=estimate,
            usage=Usage(input_tokens=101_000),
            estimated=False,
            billed=True,
            occurred_at=NOON,
            prices=above,
        )

        lines = CostEvent.objects.all()
        assert sum(line.input_tokens for line in lines) == 101_000
        assert sum(line.amount_picodollars for line in lines) == 101_000 * 25_000_000
        assert sum(line.billed_picodollars for line in lines) == 101_000 * 25_000_000
        assert ledger_by_key() == roll_ups_by_key()

    def test_leaves_an_unpriced_charge_unpriced(self, charge: Callable[..., CostEvent]) -> None:
        unpriced = charge(auth_mode="byok", prices=None, estimated=True)

        line = record_adjustment(charge=unpriced, usage=Usage(), estimated=False, billed=False, occurred_at=NOON)

        line.refresh_from_db()
        assert line.amount_picodollars is None
        assert line.input_tokens == -1000

    @in_one_test
    @given(
        estimate=usages,
        corrections=st.lists(st.tuples(usages, st.booleans(), st.booleans()), min_size=1, max_size=4),
        prices=unit_prices.map(lambda prices: replace(prices, web_search=10_000_000_000)),
    )
    def test_makes_the_lines_of_a_call_add_up(
        self,
        charge: Callable[..., CostEvent],
        estimate: Usage,
        corrections: list[tuple[Usage, bool, bool]],
        prices: UnitPrices,
    ) -> None:
        other_band = replace(prices, above_prompt_tokens=200_000, input=prices.input + 1)
        line = charge(usage=estimate, prices=prices, billed=False, estimated=True)

        for usage, billed, crosses in corrections:
            band = other_band if crosses else prices
            record_adjustment(charge=line, usage=usage, estimated=False, billed=billed, occurred_at=NOON, prices=band)

        lines = [line, *CostEvent.objects.filter(adjusts=line)]
        amount = exact_dollars(usage, band) * 10**12
        for part in fields(Usage):
            assert sum(getattr(each, part.name) for each in lines) == getattr(usage, part.name)
        assert sum(each.amount_picodollars or 0 for each in lines) == amount
        assert sum(each.billed_picodollars for each in lines) == (amount if billed else 0)
        assert ledger_by_key() == roll_ups_by_key()


class TestCostEvent:
    """What the database itself refuses, whoever writes."""

    @pytest.mark.parametrize(
        "wrong",
        [
            {"amount_picodollars": 1},
            {"amount_picodollars": None},
            {"input_picodollars": None},
            {"input_tokens": 1001},
            {"web_search_picodollars": None, "web_search_requests": 1},
            {"input_tokens": -1, "amount_picodollars": 2_500_000_000 - 5_000_000},
            {"billed_picodollars": 1},
            {"billed": False},
            {"billed": False, "auth_mode": "byok"},
            {"auth_mode": "byok"},
            {"kind": "adjustment"},
        ],
        ids=str,
    )
    def test_refuses_a_wrong_line(self, charge: Callable[..., CostEvent], wrong: dict[str, Any]) -> None:
        line = charge()
        line.pk, line.attempt_id = new_id("cost"), new_id("att")
        for name, value in wrong.items():
            setattr(line, name, value)

        with pytest.raises(IntegrityError), transaction.atomic():
            line.save(force_insert=True)

    def test_takes_the_same_line_when_it_is_right(self, charge: Callable[..., CostEvent]) -> None:
        line = charge()
        line.pk, line.attempt_id = new_id("cost"), new_id("att")

        line.save(force_insert=True)

        assert CostEvent.objects.count() == 2

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE billing_costevent SET amount_picodollars = 0",
            "UPDATE billing_costevent SET provider_request_id = 'x'",
            "DELETE FROM billing_costevent",
            """
            INSERT INTO billing_costevent SELECT * FROM billing_costevent WHERE true
            ON CONFLICT (id) DO UPDATE SET provider_request_id = 'x'
            """,
            pytest.param(
                "INSERT OR REPLACE INTO billing_costevent SELECT * FROM billing_costevent",
                marks=pytest.mark.sqlite,
            ),
            pytest.param(
                "SET CONSTRAINTS ALL IMMEDIATE; TRUNCATE billing_costevent CASCADE",
                marks=pytest.mark.postgres,
            ),
            pytest.param(
                "SET LOCAL session_replication_role = replica; DELETE FROM billing_costevent",
                marks=pytest.mark.postgres,
            ),
        ],
    )
    def test_is_never_changed(self, charge: Callable[..., CostEvent], change: str) -> None:
        charge()
        before = list(CostEvent.objects.values())

        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(change)

        assert list(CostEvent.objects.values()) == before

    def test_is_never_changed_through_the_models(self, charge: Callable[..., CostEvent]) -> None:
        line = charge()

        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            line.save()
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            line.delete()


@pytest.mark.django_db(transaction=True)
class TestManySettlementsAtOnce:
    def test_roll_up_exactly_and_without_deadlock(self, make_charge: Callable[..., Charge]) -> None:
        slugs = ["apollo", "gemini", "mercury", "soyuz"]

        def settle(place: int) -> None:
            # Each takes the same roll-ups in an order of its own, the first of them not yet there.
            order = slugs[place % 4 :] + slugs[: place % 4]
            try:
                for _ in range(5):
                    with transaction.atomic():
                        record_charges([make_charge(project_id=slug) for slug in order])
            finally:
                connection.close()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(settle, range(8)))

        assert CostEvent.objects.count() == 160
        assert UsageDaily.objects.count() == 4
        assert ledger_by_key() == roll_ups_by_key()


@pytest.mark.django_db(transaction=True)
class TestTriggersLifted:
    def test_guard_the_ledger_again_afterwards(self, charge: Callable[..., CostEvent]) -> None:
        charge()

        with triggers_lifted():
            CostEvent.objects.all().delete()

        charge()
        with pytest.raises(IntegrityError, match="append-only"):
            CostEvent.objects.all().delete()


class TestALineOfCapacity:
    @pytest.fixture
    def line(self, acme: Org) -> CostEvent:
        return capacity_line(acme)

    def test_adds_to_the_sums_and_is_no_call(self, line: CostEvent, acme: Org) -> None:
        day = UsageDaily.objects.get(org=acme)

        assert (day.served_model_id, day.auth_mode, day.calls, day.unpriced) == ("capacity.e2b", "byok", 0, 0)
        assert day.amount_picodollars == line.amount_picodollars == 90 * 30_250_000
        assert [str(each) for each in reconciliation.sum_differences()] == []

    def test_is_one_for_each_sandbox(self, line: CostEvent) -> None:
        line.pk = new_id("cost")

        with pytest.raises(IntegrityError), transaction.atomic():
            line.save(force_insert=True)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"amount_picodollars": 1},
            {"amount_picodollars": None},
            {"sandbox_second_picodollars": None},
            {"sandbox_seconds": None},
            {"sandbox_seconds": -1, "amount_picodollars": -30_250_000},
            {"input_tokens": 1},
            {"input_picodollars": 1},
            {"billed": True},
            {"kind": "charge"},
        ],
        ids=str,
    )
    def test_refuses_a_wrong_line(self, line: CostEvent, wrong: dict[str, Any]) -> None:
        line.pk, line.attempt_id = new_id("cost"), new_id("box")
        for name, value in wrong.items():
            setattr(line, name, value)

        with pytest.raises(IntegrityError), transaction.atomic():
            line.save(force_insert=True)

    def test_keeps_an_unknown_price_unknown(self, acme: Org) -> None:
        line = capacity_line(acme, second_picodollars=None)

        (found,) = capacity.costs_by_pool(CostEvent.objects.for_org(acme), since=NOON).values()

        assert line.amount_picodollars is None
        assert UsageDaily.objects.get(org=acme).unpriced == 1
        assert (found.seconds, found.unpriced, found.known_picodollars) == (90, 1, None)

    def test_sums_by_pool(self, acme: Org, eve: User) -> None:
        for pool in ("cloud", "cloud", "e2b"):
            capacity_line(acme, pool=pool)
        # The name of a pool that was removed is used again, at another provider.
        capacity_line(acme, pool="cloud", provider="vercel", second_picodollars=None)
        capacity_line(Org.objects.get(slug="evil"))
        capacity_line(acme, occurred_at=NOON - timedelta(seconds=1))

        found = capacity.costs_by_pool(CostEvent.objects.for_org(acme), since=NOON)

        assert [(*key, one.sandboxes, one.seconds, one.unpriced) for key, one in found.items()] == [
            ("cloud", "e2b", 2, 180, 0),
            ("cloud", "vercel", 1, 90, 1),
            ("e2b", "e2b", 1, 90, 0),
        ]
        assert found["cloud", "e2b"].known_picodollars == 180 * 30_250_000
