"""What a request asks for beyond tokens, and whether it has a price."""

from fractions import Fraction
from typing import Any

import pytest

from integrations.providers.anthropic import features
from integrations.providers.anthropic.server_tools import placed_tools


class TestUnpricedFeature:
    @pytest.mark.parametrize(
        ("body", "found"),
        [
            ({"model": "m", "messages": [], "max_tokens": 1, "system": "s", "stream": True}, ""),
            ({"tools": [{"name": "own", "input_schema": {}}, {"type": "custom", "name": "own"}]}, ""),
            ({"tools": [{"type": "web_search_20250305"}, {"type": "bash_20250124"}]}, ""),
            ({"tools": [{"type": "code_execution_20250825"}]}, "code_execution_20250825"),
            ({"tools": [{"type": "tool_search_tool_bm25"}, {"type": "advisor_20260301"}]}, ""),
            ({"tools": [{"type": "computer_toolset_20990101"}]}, "computer_toolset_20990101"),
            ({"tools": [{"type": "web_search_20990101"}]}, "web_search_20990101"),
            ({"tools": [{"type": "advisor_team_20990101"}]}, "advisor_team_20990101"),
            ({"tools": [{"type": 7}]}, "7"),
            ({"container": "c"}, "container"),
            ({"mcp_servers": [], "made_up": 1}, "made_up"),
            ({"tools": "x"}, ""),
        ],
        ids=[
            "plain",
            "own",
            "known",
            "code",
            "undated",
            "set",
            "date",
            "team",
            "number",
            "container",
            "first",
            "shapeless",
        ],
    )
    def test_names_what_has_no_price(self, body: dict[str, Any], found: str) -> None:
        assert features.unpriced_feature(body, [tool for _, tool in placed_tools(body)]) == found


class TestHighestFactor:
    @pytest.mark.parametrize(
        ("body", "most"),
        [
            ({}, Fraction(11, 10)),
            ({"inference_geo": None, "speed": None}, Fraction(11, 10)),
            ({"inference_geo": "us"}, Fraction(11, 10)),
            ({"inference_geo": "global"}, 1),
            ({"inference_geo": "mars"}, Fraction(11, 10)),
            ({"inference_geo": ""}, Fraction(11, 10)),
            ({"inference_geo": "not_available"}, Fraction(11, 10)),
            ({"inference_geo": ["global"]}, Fraction(11, 10)),
            ({"inference_geo": "global", "speed": "standard"}, 1),
            ({"inference_geo": "global", "speed": "fast"}, 2),
            ({"inference_geo": "global", "speed": "warp"}, 2),
            ({"speed": "fast"}, Fraction(22, 10)),
        ],
    )
    def test_is_that_of_the_dearest_that_may_serve(self, body: dict[str, Any], most: Fraction) -> None:
        assert features.highest_factor(body) == most
