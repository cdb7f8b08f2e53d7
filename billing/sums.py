"""Sums of amounts that may pass 2^63, where SQLite has no whole numbers left: added in two parts."""

from collections.abc import Mapping
from typing import Any

from django.db.models import F, QuerySet, Sum

from rensei.core.money import PICODOLLARS_PER_DOLLAR


def exact_sum(rows: QuerySet[Any], column: str) -> int:
    """Add a column of picodollars up."""
    return whole_of(rows.order_by().aggregate(**parts_of(column)))


def parts_of(column: str) -> dict[str, Sum]:
    """The two sums to ask the database for: the whole dollars and the rest."""
    return {
        "whole_dollars": Sum(F(column) / PICODOLLARS_PER_DOLLAR),
        "rest_picodollars": Sum(F(column) % PICODOLLARS_PER_DOLLAR),
    }


def whole_of(row: Mapping[str, Any]) -> int:
    """Put the two parts together. PostgreSQL gives a sum of large whole numbers as a decimal."""
    return int(row["whole_dollars"] or 0) * PICODOLLARS_PER_DOLLAR + int(row["rest_picodollars"] or 0)
