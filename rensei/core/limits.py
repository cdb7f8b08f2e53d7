"""
Declares the limits on work that input can cause, each beside the code that enforces it and nowhere else.

A limit is a constant, or the default of a setting, that is wrapped in `limit()`. `docs/limits.md` has a row for each.
To add one, write it; `tests/architecture/test_limits_doc.py` then fails with the row that the table lacks.
"""

from dataclasses import dataclass
from typing import TypeVar

MIB = 1024 * 1024

Value = TypeVar("Value", int, float, str)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One row of the table: what is bounded, the value, and who is notified how when it is reached."""

    what: str
    bound: str
    told: str

    def row(self) -> str:
        return f"| {self.what} | {self.bound} | {self.told} |"


_declared: dict[str, Limit] = {}


def limit(value: Value, unit: str = "", *, what: str, told: str, setting: str = "") -> Value:
    """
    Declare a limit and return its value.

    :param unit: what is counted, such as `bytes` or `calls`; empty where the value says it, as in `600/min`
    :param what: the work that is bounded, and for whom: "Calls under way, each organization and process"
    :param told: who is notified how: "the caller: 429 `RATE_LIMITED`"
    :param setting: the environment variable by which operators change it; `value` is its default then
    """
    bound = " ".join(filter(None, [_written(value, unit), f"(`{setting}`)" if setting else ""]))
    found = Limit(what=what, bound=bound, told=told)
    # A module that is loaded again declares the same limit again.
    if _declared.setdefault(what, found) != found:
        raise ValueError(f"Two limits are declared for '{what}'.")
    return value


def declared() -> list[Limit]:
    """List the limits of all modules that have been imported, in the order of what they bound."""
    return sorted(_declared.values(), key=lambda found: found.what)


def _written(value: float | str, unit: str) -> str:
    if isinstance(value, str):
        return f"{value} {unit}".strip()
    for size, name in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if unit == "bytes" and value >= size and value % size == 0:
            return f"{value // size:,} {name}"
    return f"{value:,} {unit}".strip()
