"""
Many rows at once: inserted, deleted, locked or updated together, the last two with a condition for each row.

On PostgreSQL all rows are sent as one JSON document in one statement, because writing some hundred values into
the text of a statement costs more than storing them: https://www.postgresql.org/docs/17/functions-json.html
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

import orjson
from django.db import connection
from django.db.models import Field, Model, QuerySet

Row = tuple[Mapping[str, Any], Mapping[str, Any]]


class _HoldsExpression(Exception):
    """A value is an expression, which has no form in JSON."""


def insert_all(model: type[Model], instances: Sequence[Model]) -> None:
    """Save new instances, whose primary keys are generated here, without reading anything back."""
    insert_together({model: instances})


def insert_together(instances_of: Mapping[type[Model], Sequence[Model]]) -> None:
    """As `insert_all`, for several models, in one statement: a statement costs as much as several rows."""
    given = {model: instances for model, instances in instances_of.items() if instances}
    if connection.vendor != "postgresql":
        for model, instances in given.items():
            model._default_manager.bulk_create(instances)  # noqa: SLF001 - Django's documented way from a model
        return
    if not given:
        return
    names_of, sql = _insertion(tuple(given))
    # Django stores column values in an instance's own dictionary, which is quicker to read than attributes.
    documents = [
        _document([{name: values[name] for name in names} for values in map(vars, instances)])
        for names, instances in zip(names_of, given.values(), strict=True)
    ]
    with connection.cursor() as cursor:
        cursor.execute(sql, documents)
    for instances in given.values():
        for instance in instances:
            # As Django marks saved instances, so that a second `save` is an UPDATE.
            instance._state.adding, instance._state.db = False, connection.alias  # noqa: SLF001


def lock_each(guarded: QuerySet[Any], rows: Sequence[Mapping[str, Any]]) -> set[Any]:
    """
    Lock the rows of a guarded query set that are still as the caller has read them, until the end of the transaction.

    They are locked in the order of their primary keys. A row is the values that it must have, including that key; all
    rows name the same fields. The importing module makes the query set once, because its statement is cached. Returns
    the primary keys of the locked rows.
    """
    if connection.vendor != "postgresql":
        # SQLite has one writer.
        key = guarded.model._meta.pk.name  # noqa: SLF001
        return {known[key] for known in rows if guarded.filter(**known).exists()}
    if not rows:
        return set()
    sql, names_of, params = _locking(guarded, tuple(rows[0]))
    objects = ({given: known[name] for given, name in names_of.items()} for known in rows)
    return {found for (found,) in _execute(sql, objects, *params)}


def update_each(guarded: QuerySet[Any], rows: Sequence[Row]) -> set[Any]:
    """
    Update the rows of a guarded query set that are still as the caller has read them.

    As in `lock_each`, but a row is a pair: the values it must have, and its new values. Returns the primary keys of the
    updated rows. Rows with expressions are plain UPDATEs, as all are on SQLite, which has no network round trip.
    """
    if not rows:
        return set()
    if connection.vendor == "postgresql":
        sql, names_of, params = _updating(guarded, *(tuple(part) for part in rows[0]))
        objects = ({given: row[part][name] for given, part, name in names_of} for row in rows)
        with suppress(_HoldsExpression):
            return {found for (found,) in _execute(sql, objects, *params)}
    key = guarded.model._meta.pk.name  # noqa: SLF001
    return {known[key] for known, values in rows if guarded.filter(**known).update(**values)}


def delete_all(model: type[Model], keys: Collection[str], *, returning: Sequence[str]) -> list[tuple[Any, ...]]:
    """Delete rows by their primary keys, in a transaction, and return these columns of the rows that existed."""
    if connection.vendor != "postgresql":
        # SQLite has one writer, so no row can be deleted in between.
        rows = model._default_manager.filter(pk__in=keys)  # noqa: SLF001
        found = list(rows.values_list(*returning))
        rows.delete()
        return found
    meta = model._meta  # noqa: SLF001
    columns = ", ".join(connection.ops.quote_name(name) for name in returning)
    with connection.cursor() as cursor:
        cursor.execute(
            f"DELETE FROM {_table(model)} WHERE {_column(meta.pk)} = ANY(%s) RETURNING {columns}",  # noqa: S608
            [list(keys)],
        )
        deleted: list[tuple[Any, ...]] = cursor.fetchall()
        return deleted


@cache
def _insertion(models: tuple[type[Model], ...]) -> tuple[list[list[str]], str]:
    """Build the statement that inserts rows of these models, and list the attributes that it takes of each."""
    names_of, inserts = [], []
    for model in models:
        # Django also returns columns with a default in the database, but their values are known here.
        known = (one for one in model._meta.concrete_fields if one.has_db_default() or not one.db_returning)  # noqa: SLF001
        fields = {field.attname: field for field in known}
        columns = ", ".join(_column(field) for field in fields.values())
        names = ", ".join(f'"{name}"' for name in fields)
        names_of.append(list(fields))
        inserts.append(
            f"INSERT INTO {_table(model)} ({columns}) "  # noqa: S608 - names of the model's own; values are a parameter
            f"SELECT {names} FROM {_recordset(fields)}"
        )
    # References between the rows are checked at the end of the transaction.
    *others, last = inserts
    named = ", ".join(f'"rows_{number}" AS ({insert})' for number, insert in enumerate(others))
    return names_of, f"WITH {named} {last}" if named else last


@lru_cache(maxsize=32)
def _locking(guarded: QuerySet[Any], known: tuple[str, ...]) -> tuple[str, dict[str, str], tuple[Any, ...]]:
    """Build a statement, the name of each value in a row, and the parameters of its guard."""
    given, matches, params = _guard(guarded, known)
    table, key = _table(guarded.model), _column(guarded.model._meta.pk)  # noqa: SLF001
    sql = (
        f"SELECT {table}.{key} FROM {table}, {_recordset(given)} "  # noqa: S608 - names of the model's own
        f"WHERE {matches} ORDER BY {table}.{key} FOR NO KEY UPDATE OF {table}"
    )
    return sql, dict(zip(given, known, strict=True)), params


@lru_cache(maxsize=32)
def _updating(
    guarded: QuerySet[Any], known: tuple[str, ...], becomes: tuple[str, ...]
) -> tuple[str, list[tuple[str, bool, str]], tuple[Any, ...]]:
    """Build a statement, for each value its name in a row, its half and its field, and the parameters of its guard."""
    meta = guarded.model._meta  # noqa: SLF001 - Django's documented way from a model
    given, matches, params = _guard(guarded, known)
    new = [meta.get_field(name) for name in becomes]
    given |= {f"new_{field.column}": field for field in new}
    names_of = [(given_name, index >= len(known), (*known, *becomes)[index]) for index, given_name in enumerate(given)]
    table = _table(guarded.model)
    sets = ", ".join(f'{_column(field)} = "new_{field.column}"' for field in new)
    sql = (
        f"UPDATE {table} SET {sets} FROM {_recordset(given)} "  # noqa: S608 - names of the model's own
        f"WHERE {matches} RETURNING {table}.{_column(meta.pk)}"
    )
    return sql, names_of, params


def _guard(guarded: QuerySet[Any], known: tuple[str, ...]) -> "tuple[dict[str, Field[Any, Any]], str, tuple[Any, ...]]":
    """Return the given values that a row must have, the condition that it still has them, and its parameters."""
    table = _table(guarded.model)
    must_be = [guarded.model._meta.get_field(name) for name in known]  # noqa: SLF001
    # A key is looked up in its index; other values may be null, which needs IS NOT DISTINCT FROM.
    same = {True: "=", False: "IS NOT DISTINCT FROM"}
    matches = [f'{table}.{_column(field)} {same[field.primary_key]} "known_{field.column}"' for field in must_be]
    params: tuple[Any, ...] = ()
    if guarded.query.where:
        where, params = guarded.query.get_compiler(connection=connection).compile(guarded.query.where)
        matches.append(where)
    return {f"known_{field.column}": field for field in must_be}, " AND ".join(matches), tuple(params)


def _execute(sql: str, objects: Iterable[Mapping[str, Any]], *params: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        # Times are written as ISO 8601, and subclasses of text as text; PostgreSQL reads both.
        cursor.execute(sql, [_document(list(objects)), *params])
        return cursor.fetchall() if cursor.description else []


def _document(objects: list[Mapping[str, Any]]) -> str:
    try:
        return orjson.dumps(objects, default=_text_of).decode()
    except TypeError:
        # An integer of more than 64 bits, which is rare, and which only the slower writer accepts.
        return json.dumps(objects, default=_text_of)


def _text_of(value: Any) -> str:
    """
    Write what JSON has no form for as PostgreSQL reads it: https://www.postgresql.org/docs/17/datatype-binary.html

    :raises _HoldsExpression: for what only the database can compute
    """
    if hasattr(value, "resolve_expression"):
        raise _HoldsExpression
    return rf"\x{value.hex()}" if isinstance(value, bytes) else str(value)


def _recordset(fields: "Mapping[str, Field[Any, Any]]") -> str:
    columns = ", ".join(f'"{name}" {_type(field)}' for name, field in fields.items())
    return f"json_to_recordset(%s) AS given ({columns})"


def _table(model: type[Model]) -> str:
    return connection.ops.quote_name(model._meta.db_table)  # noqa: SLF001


@cache
def _column(field: "Field[Any, Any]") -> str:
    assert field.column is not None
    return connection.ops.quote_name(field.column)


@cache
def _type(field: "Field[Any, Any]") -> str:
    found = field.rel_db_type(connection) if field.is_relation else field.db_type(connection)
    assert found is not None
    return found
