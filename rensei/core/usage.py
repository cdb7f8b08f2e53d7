"""How many tokens a call used, in classes that do not overlap, and which model used them."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Usage:
    """
    Token counts of one call. `input_tokens` is the uncached rest of the prompt, and `thinking_tokens`
    are a part of `output_tokens`, shown but not priced again.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    thinking_tokens: int = 0
    web_search_requests: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Count the whole prompt, cached or not, which selects the price band."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_5m_tokens + self.cache_write_1h_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(**{name: count + getattr(other, name) for name, count in self.as_dict().items()})

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(**{name: count - getattr(other, name) for name, count in self.as_dict().items()})

    def as_dict(self) -> dict[str, int]:
        # All are numbers, so there is nothing inside to copy as `asdict` would, which takes ten times as long.
        return dict(vars(self))

    @classmethod
    def of(cls, line: object) -> Self:
        """Read the counts of a ledger line, which has the same names."""
        return cls(**{name: getattr(line, name) for name in cls.__dataclass_fields__})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(**data)


NOTHING = Usage()


@dataclass(frozen=True, kw_only=True)
class UsagePart:
    """
    What one model used in a call.

    `model_id` is as the answer names it; "" is the requested model. `price_factor` is the factor of the region, the
    speed and the like on the prices of its tokens. `samplings` is how often the model was run for it. `unreported` is
    the part of the usage that the provider did not report: it is estimated from what had arrived.
    """

    usage: Usage
    model_id: str = ""
    price_factor: Fraction = Fraction(1)
    estimated: bool = False
    samplings: int = 1
    unreported: Usage = NOTHING

    def __add__(self, other: "UsagePart") -> "UsagePart":
        """Add two parts of the same model."""
        return UsagePart(
            usage=self.usage + other.usage,
            model_id=self.model_id,
            price_factor=max(self.price_factor, other.price_factor),
            estimated=self.estimated or other.estimated or self.price_factor != other.price_factor,
            samplings=self.samplings + other.samplings,
            unreported=self.unreported + other.unreported,
        )


def merged(parts: Iterable[UsagePart]) -> list[UsagePart]:
    """Add up the parts of each model, in the order in which the models first occur."""
    found: dict[str, UsagePart] = {}
    for part in parts:
        found[part.model_id] = found[part.model_id] + part if part.model_id in found else part
    return list(found.values())


def total(parts: Iterable[UsagePart]) -> Usage:
    """Add up what all models used. At least one part is required."""
    first, *others = parts
    return sum((part.usage for part in others), start=first.usage) if others else first.usage
