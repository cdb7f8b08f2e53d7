"""
What a request of the Messages API asks for beyond tokens, and what that costs.

Sources: https://platform.claude.com/docs/en/about-claude/pricing and …/agents-and-tools/tool-use/overview
"""

import math
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

from catalog.providers import PROVIDERS
from integrations.providers.anthropic.server_tools import KNOWN_TOOLS
from integrations.providers.anthropic.tokens import KNOWN_FIELDS

# An advisor is paid by the tokens of its model, every other known tool by those of the call or by its searches.
_ADVISOR = re.compile(r"advisor_\d{8}")


def unpriced_feature(body: Mapping[str, Any], tools: Iterable[Mapping[str, Any]]) -> str:
    """
    Name a feature that a request asks for and that has no price, or nothing.

    :param tools: those that the request declares, as `server_tools.tools_of` lists them
    """
    for name in sorted(body.keys() - KNOWN_FIELDS):
        # Models that are named are judged each by itself. Those that the provider would choose cannot be.
        if name == "fallbacks" and isinstance(body[name], list):
            continue
        return name
    for tool in tools:
        kind = tool.get("type")
        name = "custom" if kind is None else str(kind)
        if name != "custom" and not KNOWN_TOOLS.fullmatch(name) and not _ADVISOR.fullmatch(name):
            return name
    return ""


def highest_factor(body: Mapping[str, Any]) -> Fraction:
    """
    Tell by how much the prices of tokens may be multiplied, at the most, by what serves a request.

    A request that names no region is served where its workspace says. One that asks for speed may be served without.
    """
    return _factor(
        region=_known("inference_geo", body.get("inference_geo")),
        speed=_known("speed", body.get("speed") or "standard"),
    )


def _known(name: str, asked: object) -> str | None:
    """Give what is asked for if its factor is known. Nothing, and what is not known, may be served as the dearest."""
    return asked if isinstance(asked, str) and asked in PROVIDERS["claude"].price_factors[name] else None


@cache
def _factor(*, region: str | None, speed: str | None) -> Fraction:
    factors = PROVIDERS["claude"].price_factors
    chosen = (("inference_geo", region), ("speed", speed))
    return math.prod(
        (factors[name][value] if value else max(factors[name].values()) for name, value in chosen), start=Fraction(1)
    )
