"""
What a request of the Messages API asks for beyond tokens, and what that costs.

Sources: https://platform.claude.com/docs/en/about-claude/pricing and …/agents-and-tools/tool-use/overview
"""

from collections.abc import Mapping, Sequence
from typing import Any

from catalog.pricing import UnitPrices

# Fields that cost nothing but the tokens which they bring. A field that is not here may have a price of its own.
_PRICED = frozenset(
    {
        "model",
        "messages",
        "max_tokens",
        "cache_control",
        "context_management",
        "inference_geo",
        "metadata",
        "output_config",
        "output_format",
        "service_tier",
        "speed",
        "stop_sequences",
        "stream",
        "system",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    }
)
# Tools that Anthropic runs or knows by name, and that are paid by their tokens; web searches have their own price.
_PRICED_TOOLS = ("bash_", "computer_", "memory_", "text_editor_", "tool_search_tool_", "web_fetch_", "web_search_")
_SEARCHES_UNLESS_LIMITED = 50
_IN_THE_US = (11, 10)
_FAST = (2, 1)


def unpriced_feature(body: Mapping[str, Any]) -> str:
    """Name a feature that a request asks for and that has no price, or nothing."""
    for name in sorted(body.keys() - _PRICED):
        return name
    for tool in _tools(body):
        kind = tool.get("type")
        if kind is not None and kind != "custom" and not str(kind).startswith(_PRICED_TOOLS):
            return str(kind)
    return ""


def web_searches_at_most(body: Mapping[str, Any]) -> int:
    """Count the web searches that a request allows; where it sets no limit, as many as nobody has been seen to make."""
    searches = [tool for tool in _tools(body) if str(tool.get("type", "")).startswith("web_search_")]
    limits = [tool.get("max_uses") for tool in searches]
    return sum(limit if type(limit) is int and limit >= 0 else _SEARCHES_UNLESS_LIMITED for limit in limits)


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


def _tools(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools = body.get("tools")
    return [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
