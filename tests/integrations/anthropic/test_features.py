"""What a request asks for beyond tokens, and whether it has a price."""

from typing import Any

import pytest

from catalog.pricing import UnitPrices
from integrations.providers.anthropic import features

PRICES = UnitPrices(
    above_prompt_tokens=0,
    input=5_000_000,
    output=25_000_000,
    cache_write_5m=6_250_000,
    cache_write_1h=10_000_000,
    cache_read=500_000,
    web_search=None,
)


class TestUnpricedFeature:
    @pytest.mark.parametrize(
        ("body", "found"),
        [
            ({"model": "m", "messages": [], "max_tokens": 1, "system": "s", "stream": True}, ""),
            ({"tools": [{"name": "own", "input_schema": {}}, {"type": "custom", "name": "own"}]}, ""),
            ({"tools": [{"type": "web_search_20250305"}, {"type": "bash_20250124"}]}, ""),
            ({"tools": [{"type": "code_execution_20250825"}]}, "code_execution_20250825"),
            ({"tools": [{"type": 7}]}, "7"),
            ({"container": "c"}, "container"),
            ({"mcp_servers": [], "made_up": 1}, "made_up"),
            ({"tools": "x"}, ""),
        ],
        ids=["plain", "own", "known", "code", "number", "container", "first", "shapeless"],
    )
    def test_names_what_has_no_price(self, body: dict[str, Any], found: str) -> None:
        assert features.unpriced_feature(body) == found


class TestPricesFor:
    def test_leaves_them_as_they_are(self) -> None:
        assert features.prices_for({}, [PRICES]) == [PRICES]

    def test_doubles_them_for_speed(self) -> None:
        (fast,) = features.prices_for({"speed": "fast"}, [PRICES]) or []

        assert (fast.input, fast.output) == (10_000_000, 50_000_000)

    def test_adds_a_tenth_in_the_united_states(self) -> None:
        (local,) = features.prices_for({"inference_geo": "us"}, [PRICES]) or []

        assert (local.input, local.output) == (5_500_000, 27_500_000)

    def test_multiplies_both(self) -> None:
        (both,) = features.prices_for({"inference_geo": "us", "speed": "fast"}, [PRICES]) or []

        assert (both.input, both.output) == (11_000_000, 55_000_000)
