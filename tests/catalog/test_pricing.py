"""Prices in force, bands, and exact amounts."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.models import CatalogEntry, Price
from catalog.pricing import UnitPrices, band_for, bands_in_force, cost, price_lists, wire, worst_case
from rensei.core.usage import Usage

NOW = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)


def _prices(*, above: int = 0, factor: int = 1, web_search: int | None = 10**10) -> UnitPrices:
    return UnitPrices(
        above_prompt_tokens=above,
        input=100_000 * factor,
        output=500_000 * factor,
        cache_write_5m=125_000 * factor,
        cache_write_1h=200_000 * factor,
        cache_read=10_000 * factor,
        web_search=web_search,
    )


BANDS = [_prices(), _prices(above=100_000, factor=5)]


@pytest.mark.usefixtures("catalog")
class TestBandsInForce:
    @pytest.mark.parametrize(
        ("moment", "cache_read"),
        [
            (datetime(2026, 10, 6, 23, 59, 59, tzinfo=UTC), 200_000),
            (datetime(2026, 10, 7, tzinfo=UTC), 100_000),
            (NOW, 100_000),
        ],
    )
    def test_changes_on_the_day_of_a_new_price(self, moment, cache_read):
        sonnet = CatalogEntry.objects.get(model_id="claude-sonnet-5-5")

        (band,) = bands_in_force(sonnet, moment=moment)

        assert band.cache_read == cache_read

    def test_is_empty_before_the_first_price(self):
        sonnet = CatalogEntry.objects.get(model_id="claude-sonnet-5-5")

        assert bands_in_force(sonnet, moment=datetime(2026, 9, 27, tzinfo=UTC)) == []

    def test_is_empty_for_an_unpriced_model(self):
        assert bands_in_force(CatalogEntry.objects.get(model_id="claude-2.1"), moment=NOW) == []

    def test_lists_bands_from_the_lowest(self):
        haiku = CatalogEntry.objects.get(model_id="claude-haiku-5-5")

        assert bands_in_force(haiku, moment=NOW) == BANDS

    def test_drops_an_upper_band_that_a_newer_price_does_not_have(self):
        haiku = CatalogEntry.objects.get(model_id="claude-haiku-5-5")
        newer = Price.objects.get(entry=haiku, above_prompt_tokens=0)
        newer.pk, newer.effective_from = None, NOW - timedelta(days=1)
        newer.save()

        assert bands_in_force(haiku, moment=NOW) == BANDS[:1]

    def test_takes_one_query(self, django_assert_num_queries):
        haiku = CatalogEntry.objects.get(model_id="claude-haiku-5-5")

        with django_assert_num_queries(1):
            bands_in_force(haiku, moment=NOW)


@pytest.mark.usefixtures("catalog")
class TestPriceLists:
    def test_takes_one_query_for_all_models(self, django_assert_num_queries):
        entries = list(CatalogEntry.objects.all())

        with django_assert_num_queries(1):
            lists = price_lists(entries, moment=NOW)

        unpriced = {entry.model_id for entry in entries if entry.pk not in lists}
        assert unpriced == {"claude-2.0", "claude-2.1"}


class TestBandFor:
    @pytest.mark.parametrize(
        ("prompt_tokens", "above"), [(0, 0), (1, 0), (99_999, 0), (100_000, 0), (100_001, 100_000), (10**6, 100_000)]
    )
    def test_is_the_highest_band_that_the_prompt_is_above(self, prompt_tokens, above):
        assert band_for(BANDS, prompt_tokens=prompt_tokens).above_prompt_tokens == above

    def test_does_not_depend_on_the_order(self):
        assert band_for(BANDS[::-1], prompt_tokens=100_001) == BANDS[1]


class TestCost:
    def test_prices_each_class_on_its_own(self):
        usage = Usage(
            input_tokens=3,
            output_tokens=5,
            cache_read_tokens=7,
            cache_write_5m_tokens=11,
            cache_write_1h_tokens=13,
            thinking_tokens=4,
            web_search_requests=2,
        )

        amount = cost(usage, _prices())

        assert amount == 3 * 100_000 + 5 * 500_000 + 7 * 10_000 + 11 * 125_000 + 13 * 200_000 + 2 * 10**10

    def test_is_exact_to_the_picodollar(self):
        opus = UnitPrices(
            above_prompt_tokens=0,
            input=15_000_000,
            output=75_000_000,
            cache_write_5m=18_750_000,
            cache_write_1h=30_000_000,
            cache_read=1_500_000,
            web_search=10**10,
        )

        amount = cost(Usage(input_tokens=1_000_000, output_tokens=1), opus)

        assert Decimal(amount) / 10**12 == Decimal("15.000075")

    def test_costs_nothing_where_nothing_was_used(self):
        assert cost(Usage(), _prices(web_search=None)) == 0

    def test_never_takes_an_unknown_price_for_nothing(self):
        with pytest.raises(ValueError, match="no price"):
            cost(Usage(web_search_requests=1), _prices(web_search=None))


class TestWorstCase:
    @pytest.mark.parametrize(
        ("prompt_caching", "prompt_price"), [("off", 100_000), ("ephemeral", 125_000), ("static", 200_000)]
    )
    def test_takes_the_dearest_class_that_the_request_may_use(self, prompt_caching, prompt_price):
        amount = worst_case(BANDS, prompt_tokens=1000, max_tokens=100, prompt_caching=prompt_caching)

        assert amount == 1000 * prompt_price + 100 * 500_000

    def test_uses_the_upper_band_for_a_long_prompt(self):
        amount = worst_case(BANDS, prompt_tokens=100_001, max_tokens=1, prompt_caching="off")

        assert amount == 100_001 * 500_000 + 2_500_000

    @pytest.mark.parametrize("caching", ["off", "ephemeral", "static"])
    @pytest.mark.parametrize("prompt_tokens", [0, 10, 100_000, 100_001, 150_000])
    def test_is_never_below_a_cost_within_it(self, prompt_tokens, caching):
        bound = worst_case(BANDS, prompt_tokens=prompt_tokens, max_tokens=50, prompt_caching=caching, web_searches=1)

        for used in {0, prompt_tokens // 2, prompt_tokens}:
            field = {"off": "input_tokens", "ephemeral": "cache_write_5m_tokens", "static": "cache_write_1h_tokens"}
            usage = Usage(**{field[caching]: used}, output_tokens=50, web_search_requests=1)
            assert cost(usage, band_for(BANDS, prompt_tokens=used)) <= bound

    def test_never_takes_an_unknown_price_for_nothing(self):
        with pytest.raises(ValueError, match="no price"):
            worst_case([_prices(web_search=None)], prompt_tokens=1, max_tokens=1, web_searches=1)


class TestWire:
    def test_writes_true_cents_whole_when_whole(self):
        assert wire(BANDS, datetime(2026, 10, 7, tzinfo=UTC)) == {
            "currency": "USD",
            "inputPerMTokenCents": 10,
            "outputPerMTokenCents": 50,
            "cacheWrite5mPerMTokenCents": 12.5,
            "cacheWrite1hPerMTokenCents": 20,
            "cacheReadPerMTokenCents": 1,
            "bands": [
                {
                    "abovePromptTokens": 100_000,
                    "inputPerMTokenCents": 50,
                    "outputPerMTokenCents": 250,
                    "cacheWrite5mPerMTokenCents": 62.5,
                    "cacheWrite1hPerMTokenCents": 100,
                    "cacheReadPerMTokenCents": 5,
                }
            ],
            "effectiveFrom": "2026-10-07T00:00:00Z",
        }

    def test_is_none_when_unpriced(self):
        assert wire([], None) is None


class TestUnitPrices:
    def test_comes_back_from_the_ledger_as_it_went(self):
        assert UnitPrices.from_dict(BANDS[1].as_dict()) == BANDS[1]


class TestTimes:
    @given(st.integers(0, 10**12), st.integers(1, 10**6), st.integers(1, 10**6))
    def test_counts_a_part_of_a_picodollar_as_one(self, price: int, up: int, down: int) -> None:
        factor = Fraction(up, down)

        multiplied = replace(_prices(), output=price).times(factor)

        assert multiplied.output == math.ceil(price * factor)
        assert multiplied.input == math.ceil(100_000 * factor)
        assert (multiplied.web_search, multiplied.above_prompt_tokens) == (10**10, 0)
