"""The cost of a call: the prices in force, the band that applies, and exact amounts in picodollars."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from functools import cache, lru_cache
from itertools import product
from typing import Any, Self

from catalog.models import CatalogEntry, Price
from catalog.providers import PROVIDERS
from rensei.core.api import camel
from rensei.core.money import cents_per_mtok
from rensei.core.periods import written
from rensei.core.token_classes import OF_TOKENS
from rensei.core.usage import Usage


@dataclass(frozen=True, kw_only=True)
class UnitPrices:
    """
    The prices of one band, in picodollars for each token and for each web search.

    They are frozen on every ledger line. `web_search` is None if searches have no price.
    """

    above_prompt_tokens: int
    input: int
    output: int
    cache_write_5m: int
    cache_write_1h: int
    cache_read: int
    web_search: int | None

    def as_dict(self) -> dict[str, int | None]:
        # All values are numbers, so no deep copy is needed as in `asdict`, which takes ten times as long.
        return dict(vars(self))

    def times(self, factor: Fraction) -> "UnitPrices":
        """
        Multiply the prices of tokens. A price is a whole number of picodollars, so fractions are rounded up.

        Prices of up to seven decimals of a dollar for a million tokens give whole numbers.
        """
        # As integers: fractions are slow to compare and to hash.
        up, down = factor.as_integer_ratio()
        return self if up == down else _multiplied(self, up, down)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class PriceList:
    """The bands of one model that are in force together, from the lowest, and the start of their validity."""

    effective_from: datetime
    bands: list[UnitPrices]


def bands_in_force(entry: CatalogEntry, *, moment: datetime) -> list[UnitPrices]:
    """Load the bands of a model at a moment, from the lowest. An empty list means that it is unpriced."""
    found = price_lists([entry], moment=moment).get(entry.pk)
    return found.bands if found else []


def price_lists(entries: Iterable[CatalogEntry], *, moment: datetime) -> dict[int, PriceList]:
    """Load the prices of many models at a moment with one query, by the entry's key. Unpriced ones are absent."""
    newest_first: dict[int, list[Price]] = {}
    for price in Price.objects.filter(entry__in=[entry.pk for entry in entries]).in_force_at(moment):
        newest_first.setdefault(price.entry_id, []).append(price)

    lists = {}
    for entry_id, prices in newest_first.items():
        # All bands of a price begin together, so a newer price without an upper band does not keep the older one's.
        since = prices[0].effective_from
        in_force = [price for price in reversed(prices) if price.effective_from == since]
        lists[entry_id] = PriceList(effective_from=since, bands=[_unit_prices(price) for price in in_force])
    return lists


def band_for(bands: Sequence[UnitPrices], *, prompt_tokens: int) -> UnitPrices:
    """Choose the band of a prompt: the highest one whose threshold the prompt exceeds."""
    return max(
        (band for band in bands if band.above_prompt_tokens == 0 or prompt_tokens > band.above_prompt_tokens),
        key=lambda band: band.above_prompt_tokens,
    )


@cache
def factors_of(provider: str) -> frozenset[Fraction]:
    """List all possible factors on the prices of a provider's tokens."""
    choices = [factors.values() for factors in PROVIDERS[provider].price_factors.values()]
    return frozenset(math.prod(chosen, start=Fraction(1)) for chosen in product(*choices))


def cost(usage: Usage, prices: UnitPrices) -> int:
    """
    Price a call's usage, in picodollars. Thinking tokens are output tokens, and are counted once.

    :raises ValueError: if the call searched the web and searches have no price: unknown is never 0
    """
    of_tokens: int = sum(getattr(usage, one.count) * getattr(prices, one.price) for one in OF_TOKENS)
    return of_tokens + _searches(usage.web_search_requests, prices)


def worst_case(
    bands: Sequence[UnitPrices],
    *,
    prompt_tokens: int,
    max_tokens: int,
    prompt_caching: str = "static",
    web_searches: int = 0,
) -> int:
    """
    Compute the most that a call which has not been made yet can cost, in picodollars.

    `prompt_tokens` is an upper bound. `prompt_caching` states which cache writes the request may cause:
    `off` none, `ephemeral` those of five minutes, `static` those of an hour as well.

    :raises ValueError: if the call may search the web and searches have no price
    """
    return max(
        [
            prompt_tokens * _dearest_prompt_token(band, prompt_caching)
            + max_tokens * band.output
            + _searches(web_searches, band)
            for band in bands
            if prompt_tokens > band.above_prompt_tokens or not band.above_prompt_tokens
        ]
    )


def wire(bands: Sequence[UnitPrices], effective_from: datetime | None) -> dict[str, Any] | None:
    """Convert prices to the JSON of the contract, in true US cents per million tokens; None if unpriced."""
    if not bands or effective_from is None:
        return None
    base, *upper = bands
    return {
        "currency": "USD",
        **_cents(base),
        "bands": [{"abovePromptTokens": band.above_prompt_tokens, **_cents(band)} for band in upper],
        "effectiveFrom": written(effective_from),
    }


@lru_cache(maxsize=1024)
def _multiplied(prices: UnitPrices, up: int, down: int) -> UnitPrices:
    names = [one.price for one in OF_TOKENS]
    # Every call uses the same few results, and the arguments and results of the cache are immutable.
    return replace(prices, **{name: -(-getattr(prices, name) * up // down) for name in names})


def _unit_prices(price: Price) -> UnitPrices:
    # Microdollars per million tokens are picodollars per token: the same number.
    return UnitPrices(
        above_prompt_tokens=price.above_prompt_tokens,
        web_search=price.web_search_picodollars,
        **{one.price: getattr(price, one.in_catalog) for one in OF_TOKENS},
    )


def _searches(requests: int, prices: UnitPrices) -> int:
    if not requests:
        return 0
    if prices.web_search is None:
        raise ValueError("Web searches have no price in this band")
    return requests * prices.web_search


def _dearest_prompt_token(band: UnitPrices, prompt_caching: str) -> int:
    if prompt_caching == "off":
        return band.input
    if prompt_caching == "ephemeral":
        return max(band.input, band.cache_write_5m)
    return max(band.input, band.cache_write_5m, band.cache_write_1h)


def _cents(band: UnitPrices) -> dict[str, int | float]:
    return {f"{camel(one.price)}PerMTokenCents": cents_per_mtok(getattr(band, one.price)) for one in OF_TOKENS}
