"""
Notice changes of what decisions are made from, so that a decision can be kept for as long as there is none.

Triggers on every table that a decision reads report a change with its commit: PostgreSQL by a notification, SQLite by a
number that they increment. Columns that are written all the time and decide nothing are left out.
"""

import hashlib
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import psycopg
from django.db import connection, connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Min

from billing.models import BillingSetting, Entitlement
from catalog.models import CatalogEntry, Identity, ModelAlias, Price
from integrations.models import DataKey, Integration, PlatformKey
from profiles.models import ModelProfile
from rensei.core.clock import moment_of, now_sql
from rensei.core.periods import start_of
from rensei.orgs.models import Host, KillSwitch, Membership, Org, Project, StoredBytes, User
from rensei.policies.models import AccessPolicy
from rensei.tokens.models import ApiToken

NAME = "decision_changes"
# The tables, and their columns that do not count.
TABLES: Mapping[type[models.Model], frozenset[str]] = {
    User: frozenset({"last_login", "password"}),
    Org: frozenset(),
    Project: frozenset(),
    Membership: frozenset(),
    Host: frozenset({"last_seen_at"}),
    KillSwitch: frozenset(),
    # What is stored changes with each run. It is checked once more when a decision is made anew.
    StoredBytes: frozenset({"used", "held"}),
    ApiToken: frozenset({"last_used_at", "last_used_address"}),
    AccessPolicy: frozenset(),
    CatalogEntry: frozenset(),
    ModelAlias: frozenset(),
    Identity: frozenset(),
    Price: frozenset(),
    BillingSetting: frozenset(),
    Entitlement: frozenset(),
    DataKey: frozenset(),
    Integration: frozenset({"last_used_at", "tested_at"}),
    PlatformKey: frozenset({"last_error"}),
    ModelProfile: frozenset(),
}
_FUNCTION = f"""
    CREATE OR REPLACE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_notify('{NAME}', ''); RETURN NULL; END $$
"""
_PRESENT = {
    "postgresql": f"SELECT tgname FROM pg_trigger WHERE tgname LIKE '{NAME}\\_%' AND tgenabled IN ('O', 'A')",  # noqa: S608
    "sqlite": f"SELECT name FROM sqlite_master WHERE type = 'trigger' AND name GLOB '{NAME}_*'",  # noqa: S608
}


def install_triggers(*, using: str, **_: Any) -> None:
    """
    Create the triggers that are missing, and drop those that are outdated. It runs after each `migrate`.

    A migration would not be sufficient: SQLite loses the triggers of a table that it alters, PostgreSQL drops a trigger
    with a column of it, and a trigger does not include columns that are added later.
    """
    wanted, present = _wanted(connections[using]), _present(connections[using])
    if wanted.keys() == present:
        return
    with connections[using].cursor() as cursor:
        if connections[using].vendor == "postgresql":
            cursor.execute(_FUNCTION)
        else:
            cursor.execute(f"CREATE TABLE IF NOT EXISTS {NAME} (number INTEGER NOT NULL)")
            cursor.execute(f"INSERT INTO {NAME} SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM {NAME})")  # noqa: S608
        for trigger in present - wanted.keys():
            cursor.execute(_drop(cursor, trigger, vendor=connections[using].vendor))
        for trigger in wanted.keys() - present:
            cursor.execute(wanted[trigger])


class DecisionChanges:
    """The changes since the last look. Bound to one thread, and to the connection of that thread."""

    def __init__(self) -> None:
        self._listening: psycopg.Connection[Any] | None = None
        self._is_notified = False
        self._number: int | None = None
        self._until: datetime | None = None

    def any(self) -> bool:
        """
        Return whether a decision that was made before the last look may be different now.

        It is True for the first look, and for every look where changes cannot be noticed: triggers are missing, or a
        proxy between here and PostgreSQL does not keep to one connection.

        :raises DatabaseError: if the database is unavailable
        """
        connection.ensure_connection()
        with connection.wrap_database_errors:
            is_changed, now = (
                self._look_on_postgresql() if connection.vendor == "postgresql" else self._look_on_sqlite()
            )
        if not is_changed and self._until is not None and now < self._until:
            return False
        is_watched = _present(connection) >= _wanted(connection).keys()
        self._until = _next_moment(now) if is_watched else None
        return True

    def close(self) -> None:
        """Stop listening, and release the connection, which a pool may give to another thread."""
        if self._listening is not None and not self._listening.closed:
            self._listening.remove_notify_handler(self._note)
            with connection.wrap_database_errors:
                self._listening.execute(f"UNLISTEN {NAME}")
        self._listening = None
        connections.close_all()

    def _look_on_postgresql(self) -> tuple[bool, datetime]:
        raw = connection.connection
        if self._listening is not raw:
            raw.add_notify_handler(self._note)
            raw.execute(f"LISTEN {NAME}")
            self._listening, self._is_notified = raw, True
        # PostgreSQL sends the notifications so far before the end of its answer. The answer also shows that the
        # connection works, and that it is the same process that listens: a proxy that gives each transaction another
        # connection, such as PgBouncer, tells its clients process numbers of its own.
        process, now = raw.execute(f"SELECT pg_backend_pid(), {now_sql()}").fetchone()
        is_notified, self._is_notified = self._is_notified, False
        return is_notified or process != raw.info.backend_pid, moment_of(now)

    def _note(self, notice: psycopg.Notify) -> None:
        if notice.channel == NAME:
            self._is_notified = True

    def _look_on_sqlite(self) -> tuple[bool, datetime]:
        number, now = connection.connection.execute(f"SELECT number, {now_sql()} FROM {NAME}").fetchone()  # noqa: S608
        is_changed = number != self._number
        self._number = number
        return is_changed, moment_of(now)


def _next_moment(now: datetime) -> datetime:
    """Return when decisions change without a write: a price begins, a key has cooled down, a model is a day older."""
    moments: list[datetime | None] = [
        Price.objects.filter(effective_from__gt=now).aggregate(at=Min("effective_from"))["at"],
        PlatformKey.objects.filter(cooling_until__gt=now).aggregate(at=Min("cooling_until"))["at"],
        start_of(now.date() + timedelta(days=1)),
    ]
    return min(moment for moment in moments if moment is not None)


def _present(database: BaseDatabaseWrapper) -> set[str]:
    with database.cursor() as cursor:
        cursor.execute(_PRESENT[database.vendor])
        return {name for (name,) in cursor.fetchall()}


def _wanted(database: BaseDatabaseWrapper) -> dict[str, str]:
    """Return the statements that create the triggers, by the trigger's name, which contains a digest of the rest."""
    wanted = {}
    for model, ignored in TABLES.items():
        meta = model._meta  # noqa: SLF001 - Django's documented interface
        columns = sorted(str(field.column) for field in meta.local_concrete_fields if field.name not in ignored)
        for when, what in _parts(database.vendor, ", ".join(columns)):
            rest = f"AFTER {when} ON {meta.db_table} {what}"
            name = f"{NAME}_{hashlib.sha256(rest.encode()).hexdigest()[:16]}"
            wanted[name] = f"CREATE TRIGGER {name} {rest}"
    return wanted


def _parts(vendor: str, columns: str) -> Iterator[tuple[str, str]]:
    if vendor == "postgresql":
        yield (
            f"INSERT OR DELETE OR TRUNCATE OR UPDATE OF {columns}",
            f"FOR EACH STATEMENT EXECUTE FUNCTION {NAME}()",
        )
        return
    for when in ("INSERT", "DELETE", f"UPDATE OF {columns}"):
        yield when, f"BEGIN UPDATE {NAME} SET number = number + 1; END"  # noqa: S608


def _drop(cursor: Any, trigger: str, *, vendor: str) -> str:
    if vendor != "postgresql":
        return f"DROP TRIGGER {trigger}"
    cursor.execute("SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = %s", [trigger])
    (table,) = cursor.fetchone()
    return f"DROP TRIGGER {trigger} ON {table}"
