"""Tables that people sort by a column: by links, so that it works without scripts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Sort:
    """The state of a heading: its current sort direction, and the target of the next click."""

    link: str
    direction: str = ""


def sort_of(name: str, order: str, *, link: Callable[[str], str]) -> Sort:
    """Make the heading of a column. `order` names a column, with a prefix `-` for descending order."""
    if order == name:
        return Sort(link=link(f"-{name}"), direction="ascending")
    return Sort(link=link(name), direction="descending" if order == f"-{name}" else "")


def in_order(rows: Sequence[Row], *, key: Callable[[Row], Any], descending: bool) -> list[Row]:
    """Sort rows by a value, None last in both directions. Rows of equal values keep their order."""
    valued = [row for row in rows if key(row) is not None]
    without = [row for row in rows if key(row) is None]
    return [*sorted(valued, key=key, reverse=descending), *without]
