"""
Whole numbers of any size in the database, for sums that may pass 2^63.

PostgreSQL has `numeric` for them. SQLite has no whole number of more than 64 bits and turns a larger sum into a rounded
float without an error, so they are text there, and functions that each connection gets add and compare them.
"""

import sqlite3
from decimal import Decimal
from typing import Any

from django.db import connection, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Aggregate, Func, lookups

DIGITS = 60


class WholeNumberField(models.Field):  # type: ignore[type-arg]
    """An integer of up to sixty digits."""

    description = "Whole number of any size"

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        return f"numeric({DIGITS}, 0)" if connection.vendor == "postgresql" else "text"

    def from_db_value(self, value: Any, expression: Any, connection: BaseDatabaseWrapper) -> int | None:
        # Through a decimal, so that a float which an older version stored can still be read. The audit reports it.
        return None if value is None else int(Decimal(value))

    def to_python(self, value: Any) -> int | None:
        return None if value is None else int(value)

    def get_prep_value(self, value: Any) -> int | None:
        prepared = super().get_prep_value(value)
        return None if prepared is None else int(prepared)

    def get_db_prep_value(self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False) -> Any:
        whole = value if prepared else self.get_prep_value(value)
        return whole if whole is None or connection.vendor == "postgresql" else str(whole)


class Plus(Func):
    """The sum of two whole numbers. One must be an expression, such as `F` or a `Value` of `WholeNumberField`."""

    arity = 2
    arg_joiner = " + "
    template = "(%(expressions)s)"
    output_field = WholeNumberField()

    def as_sqlite(self, compiler: Any, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        return self.as_sql(
            compiler, connection, function="whole_plus", template="%(function)s(%(expressions)s)", arg_joiner=", "
        )


class WholeSum(Aggregate):
    """The exact sum of a column of integers or whole numbers. None without rows."""

    function = "SUM"
    output_field = WholeNumberField()

    def as_sqlite(self, compiler: Any, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        return self.as_sql(compiler, connection, function="whole_sum")


class _Compared:
    """A comparison of whole numbers, which SQLite would otherwise compare as text."""

    operator: str

    def as_sqlite(self, compiler: Any, connection: BaseDatabaseWrapper) -> Any:
        left, left_params = self.process_lhs(compiler, connection)  # type: ignore[attr-defined]
        right, right_params = self.process_rhs(compiler, connection)  # type: ignore[attr-defined]
        return f"whole_compare({left}, {right}) {self.operator} 0", [*left_params, *right_params]


@WholeNumberField.register_lookup
class LessThan(_Compared, lookups.LessThan):
    operator = "<"


@WholeNumberField.register_lookup
class LessThanOrEqual(_Compared, lookups.LessThanOrEqual):
    operator = "<="


@WholeNumberField.register_lookup
class GreaterThan(_Compared, lookups.GreaterThan):
    operator = ">"


@WholeNumberField.register_lookup
class GreaterThanOrEqual(_Compared, lookups.GreaterThanOrEqual):
    operator = ">="


def plus(left: str, right: str) -> str:
    """Write the sum of two whole numbers, for an SQL statement that is built once."""
    return f"whole_plus({left}, {right})" if connection.vendor == "sqlite" else f"({left} + {right})"


def at_most(left: str, right: str) -> str:
    """Write the condition that one whole number is not above another."""
    return f"whole_compare({left}, {right}) <= 0" if connection.vendor == "sqlite" else f"{left} <= {right}"


def add_functions(*, connection: BaseDatabaseWrapper, **_signal: object) -> None:
    """Register the functions that are used above on a new connection to SQLite."""
    if connection.vendor != "sqlite":
        return
    database: sqlite3.Connection = connection.connection
    database.create_function("whole_plus", 2, _plus, deterministic=True)
    database.create_function("whole_compare", 2, _compare, deterministic=True)
    database.create_aggregate("whole_sum", 1, _Sum)  # type: ignore[arg-type]


def _plus(left: Any, right: Any) -> str | None:
    return None if left is None or right is None else str(int(left) + int(right))


def _compare(left: Any, right: Any) -> int | None:
    if left is None or right is None:
        return None
    difference = int(left) - int(right)
    return (difference > 0) - (difference < 0)


class _Sum:
    def __init__(self) -> None:
        self._total: int | None = None

    def step(self, value: Any) -> None:
        if value is not None:
            self._total = (self._total or 0) + int(value)

    def finalize(self) -> str | None:
        return None if self._total is None else str(self._total)
