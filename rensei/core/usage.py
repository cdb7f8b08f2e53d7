"""How many tokens a call used, in classes that do not overlap."""

from dataclasses import dataclass
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
        """The whole prompt, cached or not: what a price band is chosen by."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_5m_tokens + self.cache_write_1h_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(**{name: count + getattr(other, name) for name, count in self.as_dict().items()})

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(**{name: count - getattr(other, name) for name, count in self.as_dict().items()})

    def as_dict(self) -> dict[str, int]:
        # All are numbers, so there is nothing within to copy as `asdict` would, at ten times the time.
        return dict(vars(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(**data)
