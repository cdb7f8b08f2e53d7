"""Many conditional UPDATEs at once: each row with its own values, and each judged for itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import connection
from django.db.models import Field, QuerySet

Row = tuple[Mapping[str, Any], Mapping[str, Any]]


def update_each(guarded: QuerySet[Any], rows: Sequence[Row]) -> set[Any]:
    """
    Update the rows of a guarded query set that still are as the caller knows them.

    A row is what it must be, with its primary key among it, and what it becomes; all rows name the same fields.
    Returns the primary keys of those that were updated. On PostgreSQL many rows are one statement, unless a value
    is an expression; SQLite has no way to the server to save.
    """
    key = guarded.model._meta.pk.name  # noqa: SLF001 - Django's own documented way to a model's fields
    plain = not any(hasattr(value, "resolve_expression") for _, values in rows for value in values.values())
    if connection.vendor != "postgresql" or len(rows) == 1 or not plain:
        return {known[key] for known, values in rows if guarded.filter(**known).update(**values)}
    with connection.cursor() as cursor:
        cursor.execute(*_statement(guarded, rows))
        return {found for (found,) in cursor.fetchall()}


def _statement(guarded: QuerySet[Any], rows: Sequence[Row]) -> tuple[str, list[Any]]:
    meta, quote = guarded.model._meta, connection.ops.quote_name  # noqa: SLF001
    known, becomes = ([meta.get_field(name) for name in part] for part in rows[0])
    table, fields = quote(meta.db_table), [*known, *becomes]
    # The first row tells the database the types of all.
    first = ", ".join(f"CAST(%s AS {_type(field)})" for field in fields)
    others = f", ({', '.join(['%s'] * len(fields))})" * (len(rows) - 1)
    columns = ", ".join(f"given_{place}" for place in range(len(fields)))
    # A key is looked up in its index; other values may be null, which equals nothing.
    same = ("IS NOT DISTINCT FROM", "=")
    matches = [
        f"{table}.{quote(field.column)} {same[field.primary_key]} given_{place}" for place, field in enumerate(known)
    ]
    sets = [f"{quote(field.column)} = given_{place}" for place, field in enumerate(becomes, start=len(known))]
    where, guard_params = "", []
    if guarded.query.where:
        where, guard_params = guarded.query.get_compiler(connection=connection).compile(guarded.query.where)
        matches.append(where)
    # Everything put into the text is a name of the model's own; values travel as parameters.
    sql = (
        f"UPDATE {table} SET {', '.join(sets)} FROM (VALUES ({first}){others}) AS given ({columns}) "  # noqa: S608
        f"WHERE {' AND '.join(matches)} RETURNING {table}.{quote(meta.pk.column)}"
    )
    values = [
        field.get_db_prep_save(part[field.attname if field.attname in part else field.name], connection)
        for row_known, row_becomes in rows
        for part, fields_of_part in ((row_known, known), (row_becomes, becomes))
        for field in fields_of_part
    ]
    return sql, [*values, *guard_params]


def _type(field: "Field[Any, Any]") -> str:
    found = field.rel_db_type(connection) if field.is_relation else field.db_type(connection)
    assert found is not None
    return found
