"""The one way to look a row up or to answer that it is not there, and to read many rows page by page."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from django.db.models import Model, QuerySet

from rensei.core.errors import NotFound

M = TypeVar("M", bound=Model)
# What the readers of columns raise for content that is not of the column's type, which SQLite may hold.
_UNREADABLE = (ArithmeticError, TypeError, ValueError)


class Lookups:
    """For query sets: a look-up that refuses as the REST views and the pages do."""

    def get_or_404(self: QuerySet[M], **lookup: object) -> M:  # type: ignore[misc]
        """:raises NotFound: if there is no such row among these"""
        if any(isinstance(value, str) and "\0" in value for value in lookup.values()):
            # PostgreSQL refuses to compare with such a text.
            raise NotFound
        found = self.filter(**lookup).first()
        if found is None:
            raise NotFound
        return found


def readable(rows: QuerySet[M], *, skip: Callable[[Any, Exception], object]) -> list[M]:
    """
    Read rows, and the others one by one if one of them cannot be read.

    :param skip: called with the primary key of each that cannot, and why, while the exception is handled
    """
    try:
        return list(rows)
    except _UNREADABLE:
        found = []
        for key in list(rows.values_list("pk", flat=True)):
            try:
                found.append(rows.get(pk=key))
            except _UNREADABLE as fault:
                skip(key, fault)
        return found


def pages(rows: QuerySet[M], *, size: int, by: str = "pk") -> Iterator[list[M]]:
    """
    Read page by page in the order of a unique field, each page after the last row of the one before.

    No cursor stays open while the caller works on a page or waits for a slow client. `-pk` reads backwards.
    """
    field = by.removeprefix("-")
    rows, beyond = rows.order_by(by), f"{field}__{'lt' if by.startswith('-') else 'gt'}"
    page = list(rows[:size])
    while page:
        yield page
        page = list(rows.filter(**{beyond: getattr(page[-1], field)})[:size])
