"""
Checks that whole numbers are stored as such.

SQLite stores any type in any column. A sum that passed 2^63 there has become a rounded float, which compares equal
to other rounded floats, so only a check of the type finds it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import BooleanField, Field, IntegerField, Model

from rensei.core.whole_numbers import WholeNumberField

INTEGER = "typeof({0}) IN ('integer', 'null')"
WHOLE = (
    "(typeof({0}) = 'null' OR typeof({0}) = 'text' AND {0} GLOB '[-0-9]*' AND {0} <> '-' "
    "AND substr({0}, 2) NOT GLOB '*[^0-9]*')"
)

Columns = Mapping[str, "Field[Any, Any]"]


@dataclass(frozen=True, kw_only=True)
class WronglyStored:
    """A value, or on PostgreSQL a whole column, of another type than its field. `key` is the row's, if any."""

    table: str
    column: str
    key: str
    org_id: str
    expected: str
    found: str


def wrongly_stored(model: type[Model]) -> Iterator[WronglyStored]:
    """Name the whole numbers of a table that are stored as something else, column by column."""
    # Documented: https://docs.djangoproject.com/en/5.2/ref/models/meta/
    fields = model._meta.concrete_fields  # noqa: SLF001
    kinds = (IntegerField, WholeNumberField, BooleanField)
    columns = {str(each.column): each for each in fields if isinstance(each, kinds)}
    if columns:
        yield from _columns(model, columns) if connection.vendor == "postgresql" else _values(model, columns)


def _columns(model: type[Model], columns: Columns) -> Iterator[WronglyStored]:
    """On PostgreSQL, a column holds one type."""
    table = model._meta.db_table  # noqa: SLF001
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass", [table]
        )
        types = dict(cursor.fetchall())
    for name, each in columns.items():
        expected = str(each.db_type(connection)).replace(", ", ",")
        if types[name] != expected:
            yield WronglyStored(table=table, column=name, key="", org_id="", expected=expected, found=types[name])


def _values(model: type[Model], columns: Columns) -> Iterator[WronglyStored]:
    """On SQLite, each value has a type of its own."""
    table, key = model._meta.db_table, str(model._meta.pk.column)  # noqa: SLF001
    quote = connection.ops.quote_name
    org = quote("org_id") if hasattr(model, "org_id") else "''"
    for name, each in columns.items():
        is_whole = isinstance(each, WholeNumberField)
        fits = (WHOLE if is_whole else INTEGER).format(quote(name))
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {quote(key)}, {org}, typeof({quote(name)}), {quote(name)} "  # noqa: S608 - names of the model's
                f"FROM {quote(table)} WHERE NOT {fits}"
            )
            for row_key, org_id, kind, value in cursor:
                yield WronglyStored(
                    table=table,
                    column=name,
                    key=str(row_key),
                    org_id=str(org_id or ""),
                    expected="digits" if is_whole else "integer",
                    found=f"{kind} {value}"[:60],
                )
