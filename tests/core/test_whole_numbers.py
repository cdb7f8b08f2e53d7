"""Whole numbers of any size, on whichever database the tests run."""

from datetime import date

import pytest
from django.apps import apps
from django.db import connection
from django.db.models import F, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.models import BudgetUsage, UsageDaily
from rensei.core.stored_types import wrongly_stored
from rensei.core.whole_numbers import Plus, WholeNumberField, WholeSum
from rensei.orgs.models import Org
from tests.drawn import examples

pytestmark = pytest.mark.django_db

MONTH = date(2026, 3, 1)
LARGE = 10**40
# As often near the edges of 64 bits, where integers end, as anywhere.
NUMBERS = st.integers(-LARGE, LARGE) | st.sampled_from([0, -1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1])
many = settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def row(acme: Org) -> BudgetUsage:
    return BudgetUsage.objects.create(org=acme, month=MONTH)


def whole(number: int) -> Value:
    return Value(number, output_field=WholeNumberField())


class TestWholeNumberField:
    @many
    @given(number=NUMBERS)
    def test_gives_back_what_was_stored(self, row: BudgetUsage, number: int) -> None:
        BudgetUsage.objects.update(used=number)

        assert BudgetUsage.objects.get().used == number
        assert BudgetUsage.objects.filter(used=number).exists()
        assert list(wrongly_stored(BudgetUsage)) == []

    @many
    @given(first=NUMBERS, second=NUMBERS)
    def test_adds_in_the_database(self, row: BudgetUsage, first: int, second: int) -> None:
        BudgetUsage.objects.update(used=first)
        BudgetUsage.objects.update(used=Plus(F("used"), whole(second)))

        assert BudgetUsage.objects.get().used == first + second

    @many
    @given(first=NUMBERS, second=NUMBERS)
    def test_compares_in_the_database(self, row: BudgetUsage, first: int, second: int) -> None:
        BudgetUsage.objects.update(used=first, held=second)
        found = BudgetUsage.objects

        assert found.filter(used__lt=second).exists() is (first < second)
        assert found.filter(used__lte=second).exists() is (first <= second)
        assert found.filter(used__gt=F("held")).exists() is (first > second)
        assert found.filter(used__gte=F("held")).exists() is (first >= second)

    @many
    @given(numbers=st.lists(NUMBERS, max_size=20))
    def test_sums_in_the_database(self, acme: Org, numbers: list[int]) -> None:
        UsageDaily.objects.all().delete()
        UsageDaily.objects.bulk_create(
            UsageDaily(org=acme, day=MONTH, served_model_id=str(place), amount_picodollars=number)
            for place, number in enumerate(numbers)
        )

        found = UsageDaily.objects.aggregate(total=WholeSum("amount_picodollars"))["total"]

        assert found == (sum(numbers) if numbers else None)


class TestWronglyStored:
    @pytest.mark.sqlite
    @pytest.mark.parametrize("stored", ["9.3e18", "12.0", "", "-", "1x", None])
    def test_names_digits_that_are_none(self, row: BudgetUsage, stored: str | None) -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE billing_budgetusage SET used = COALESCE(%s, x'31')", [stored])

        (wrong,) = wrongly_stored(BudgetUsage)

        assert (wrong.column, wrong.key, wrong.org_id) == ("used", row.pk, row.pk)

    @pytest.mark.sqlite
    def test_names_an_integer_that_became_a_float(self, acme: Org) -> None:
        daily = UsageDaily.objects.create(org=acme, day=MONTH)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE billing_usagedaily SET input_tokens = 9223372036854775807 + 1.0")

        (wrong,) = wrongly_stored(UsageDaily)

        assert (wrong.column, wrong.key, wrong.expected) == ("input_tokens", str(daily.pk), "integer")
        # Which is what a comparison of values does not show.
        assert UsageDaily.objects.get().input_tokens == 2**63

    @pytest.mark.postgres
    @pytest.mark.django_db(transaction=True)
    def test_names_a_column_of_another_type(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE billing_budgetusage ALTER COLUMN used TYPE double precision")
            try:
                (wrong,) = wrongly_stored(BudgetUsage)
            finally:
                cursor.execute("ALTER TABLE billing_budgetusage ALTER COLUMN used TYPE numeric(60, 0)")

        assert (wrong.column, wrong.found) == ("used", "double precision")

    def test_finds_nothing_in_any_table_of_ours(self, acme: Org) -> None:
        BudgetUsage.objects.create(org=acme, month=MONTH, used=-LARGE)

        assert [wrong for model in apps.get_models() for wrong in wrongly_stored(model)] == []
