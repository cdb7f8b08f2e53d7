"""
What a request of the Messages API uses besides tokens, and what that costs.

Sources: https://platform.claude.com/docs/en/about-claude/pricing and …/agents-and-tools/tool-use/overview
"""

import math
from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

from catalog.providers import PROVIDERS
from integrations.providers.anthropic.known import PRICED_TOOLS, VALUES
from integrations.providers.anthropic.known_headers import LONG_WINDOW
from integrations.providers.anthropic.tokens import KNOWN_FIELDS

# The region and the speed that a request asks for. None stands for any.
PriceFactors = tuple[str | None, str | None]


def unpriced_feature(body: Mapping[str, Any], tools: Iterable[Mapping[str, Any]]) -> str:
    """
    Return the name of a requested feature that has no price, or an empty text.

    :param tools: the tools that the request declares, as listed by `server_tools.placed_tools`
    """
    for name in sorted(body.keys() - KNOWN_FIELDS):
        # Named models are checked individually. Models chosen by the provider cannot be.
        if name == "fallbacks" and isinstance(body[name], list):
            continue
        return name
    for tool in tools:
        kind = tool.get("type")
        name = "custom" if kind is None else str(kind)
        if name not in PRICED_TOOLS:
            return name
    return ""


def highest_factor(body: Mapping[str, Any]) -> Fraction:
    """Return an upper bound of the factor on token prices, given what may serve a request."""
    return factors_at_most(price_factors_of(body))


def price_factors_of(body: Mapping[str, Any]) -> PriceFactors:
    """
    List what may multiply the token prices of a request: its region and its speed. None stands for any.

    A request without a region is served where its workspace says. A request for speed may be served without it.
    """
    return _known("inference_geo", body.get("inference_geo")), _known("speed", body.get("speed") or "standard")


def own_rate_limit(model_id: str, body: Mapping[str, Any], betas: Collection[str]) -> str:
    """
    Name the limit that a request counts in where it is not the model's usual one. Empty if it is.

    Anthropic counts fast mode, and the long windows of older models, apart: https://platform.claude.com/docs/en/api/rate-limits
    """
    asked = ["fast mode"] if body.get("speed") == "fast" else []
    if not LONG_WINDOW.keys().isdisjoint(betas):
        asked.append("a 1M window")
    return f"{model_id} with {' and '.join(asked)}" if asked else ""


def _known(name: str, asked: object) -> str | None:
    """
    Return the requested value if its factor is known. Anything else may be served at the highest factor.

    An answer may report values with a factor that a request cannot ask for, such as a region that is not available.
    """
    return asked if isinstance(asked, str) and asked in VALUES[name] else None


@cache
def factors_at_most(asked: PriceFactors) -> Fraction:
    """Return an upper bound of the factor on token prices, given what `price_factors_of` lists."""
    factors = PROVIDERS["claude"].price_factors
    chosen = zip(("inference_geo", "speed"), asked, strict=True)
    return math.prod(
        (factors[name][value] if value else max(factors[name].values()) for name, value in chosen), start=Fraction(1)
    )
