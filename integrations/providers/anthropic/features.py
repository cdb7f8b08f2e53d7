"""
What a request of the Messages API asks for beyond tokens, and what that costs.

Sources: https://platform.claude.com/docs/en/about-claude/pricing and …/agents-and-tools/tool-use/overview
"""

from collections.abc import Mapping, Sequence
from typing import Any

from catalog.pricing import UnitPrices
from integrations.providers.anthropic.server_tools import tools_of
from integrations.providers.anthropic.tokens import KNOWN_FIELDS

# Tools that Anthropic runs or knows by name, and that are paid by their tokens; web searches have their own price.
_PRICED_TOOLS = ("bash_", "computer_", "memory_", "text_editor_", "tool_search_tool_", "web_fetch_", "web_search_")
_IN_THE_US = (11, 10)
_FAST = (2, 1)


def unpriced_feature(body: Mapping[str, Any]) -> str:
    """Name a feature that a request asks for and that has no price, or nothing."""
    for name in sorted(body.keys() - KNOWN_FIELDS):
        return name
    for tool in tools_of(body):
        kind = tool.get("type")
        if kind is not None and kind != "custom" and not str(kind).startswith(_PRICED_TOOLS):
            return str(kind)
    return ""


def prices_for(body: Mapping[str, Any], bands: Sequence[UnitPrices]) -> list[UnitPrices] | None:
    """Fold into the prices what the speed and the region of a request make of them. None where that is not exact."""
    factors = [
        factor
        for factor in (
            _FAST if body.get("speed") == "fast" else None,
            _IN_THE_US if body.get("inference_geo") == "us" else None,
        )
        if factor is not None
    ]
    priced: list[UnitPrices] = []
    for band in bands:
        for up, down in factors:
            scaled = band.times(up, down)
            if scaled is None:
                return None
            band = scaled
        priced.append(band)
    return priced
