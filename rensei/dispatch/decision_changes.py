"""
Notice changes of what decisions are made from, so that a decision can be kept for as long as there is none.

Triggers on every table that a decision reads report a change with its commit, with the organization that it is about:
PostgreSQL by a notification, SQLite by a row. Columns that are written all the time and decide nothing are left out.
"""

import hashlib
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import psycopg
from django.db import connection, connections, models
from django.db.models import Min

from billing.models import BillingSetting, Entitlement
from catalog.models import CatalogEntry, CatalogSetting, Identity, ModelAlias, Price
from integrations.models import DataKey, DefaultAddress, Integration, PlatformKey
from profiles.models import ModelProfile
from rensei.core.clock import moment_of, now_sql
from rensei.core.periods import start_of
from rensei.orgs.models import Host, KillSwitch, Membership, Org, Project, StoredBytes, User
from rensei.policies.models import AccessPolicy
from rensei.tokens.models import ApiToken

NAME = "decision_changes"
# Stands for every organization, among those that a change is about.
EVERY_ORG = ""
# The tables, and their columns that do not count.
TABLES: Mapping[type[models.Model], frozenset[str]] = {
    User: frozenset(
        {"last_login", "password", "email", "name", "is_mailed_decisions", "single_sign_on_issuer", "date_joined"}
    ),
    Org: frozenset(),
    Project: frozenset(),
    Membership: frozenset(),
    Host: frozenset({"last_seen_at"}),
    KillSwitch: frozenset(),
    # What is stored changes with each run. It is checked once more when a decision is made anew.
    StoredBytes: frozenset({"used", "held"}),
    ApiToken: frozenset({"last_used_at", "last_used_address", "leaked_at"}),
    AccessPolicy: frozenset(),
    CatalogEntry: frozenset(),
    CatalogSetting: frozenset(),
    ModelAlias: frozenset(),
    Identity: frozenset(),
    Price: frozenset(),
    BillingSetting: frozenset(),
    Entitlement: frozenset(),
    DataKey: frozenset(),
    DefaultAddress: frozenset(),
    Integration: frozenset(
        {"last_used_at", "tested_at", "key_created_at", "remind_after_days", "remind_at", "reminded_at", "leaked_at"}
    ),
    PlatformKey: frozenset({"last_error", "refused", "key_created_at"}),
    ModelProfile: frozenset(),
}
# SQLite keeps so many changes. A process that has seen none of them takes everything for changed.
ROWS_MAX = 1000
# The argument names the column of the organization. A table without one, and TRUNCATE, concern all organizations.
_FUNCTION = f"""
    CREATE OR REPLACE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_LEVEL = 'ROW' AND TG_NARGS = 1 THEN
            PERFORM pg_notify('{NAME}', COALESCE(to_jsonb(COALESCE(NEW, OLD)) ->> TG_ARGV[0], ''));
        ELSE
            PERFORM pg_notify('{NAME}', '');
        END IF;
        RETURN NULL;
    END $$
"""
_TABLE = f"CREATE TABLE IF NOT EXISTS {NAME} (id INTEGER PRIMARY KEY AUTOINCREMENT, org_id TEXT NOT NULL)"
_PRESENT = {
    "postgresql": f"SELECT tgname FROM pg_trigger WHERE tgname LIKE '{NAME}\\_%' AND tgenabled = 'A'",  # noqa: S608
    "sqlite": f"SELECT name FROM sqlite_master WHERE type = 'trigger' AND name GLOB '{NAME}_*'",  # noqa: S608
}


def install_triggers(*, using: str, **_: Any) -> None:
    """
    Create the triggers that are missing, and drop those that are outdated. It runs after each `migrate`.

    A migration would not be sufficient: SQLite loses the triggers of a table that it alters, PostgreSQL drops a trigger
    with a column of it, and a trigger does not include columns that are added later.
    """
    database = connections[using]
    with database.cursor() as cursor:
        wanted, present = wanted_triggers(database.vendor), present_triggers(cursor, database.vendor)
        if wanted.keys() == present:
            return
        cursor.execute(_FUNCTION if database.vendor == "postgresql" else _TABLE)
        for trigger in present - wanted.keys():
            drop_trigger(cursor, trigger, database.vendor)
        for trigger in wanted.keys() - present:
            for statement in wanted[trigger]:
                cursor.execute(statement)


class DecisionChanges:
    """The changes since the last look. Bound to one thread, and to the connection of that thread."""

    def __init__(self) -> None:
        self._listening: psycopg.Connection[Any] | None = None
        self._notified: set[str] = set()
        self._newest: int | None = None
        self._until: datetime | None = None

    def orgs(self) -> frozenset[str]:
        """
        Return the ids of the organizations for which a decision made before the last look may be different now.

        It is `EVERY_ORG` at the first look, and at every look where changes cannot be noticed: triggers are missing, or
        a proxy between here and PostgreSQL does not keep to one connection.

        :raises DatabaseError: if the database is unavailable
        """
        until, self._until = self._until, None
        connection.ensure_connection()
        with connection.wrap_database_errors:
            changed, now = self._look_on_postgresql() if connection.vendor == "postgresql" else self._look_on_sqlite()
        with connection.cursor() as cursor:
            present = present_triggers(cursor, connection.vendor)
        if not present >= wanted_triggers(connection.vendor).keys():
            return frozenset({EVERY_ORG})
        # A change may set another moment.
        self._until = until if until is not None and now < until and not changed else _next_moment(now)
        is_due = until is None or now >= until
        return frozenset({EVERY_ORG}) if is_due else frozenset(changed)

    def close(self) -> None:
        """Stop listening, and release the connection, which a pool may give to another thread."""
        if self._listening is not None and not self._listening.closed:
            self._listening.remove_notify_handler(self._note)
            with connection.wrap_database_errors:
                self._listening.execute(f"UNLISTEN {NAME}")
        self._listening = None
        connections.close_all()

    def _look_on_postgresql(self) -> tuple[set[str], datetime]:
        raw = connection.connection
        if self._listening is not raw:
            raw.add_notify_handler(self._note)
            raw.execute(f"LISTEN {NAME}")
            self._listening, self._notified = raw, {EVERY_ORG}
        # PostgreSQL sends the notifications so far before the end of its answer. The answer also shows that the
        # connection works, and that it is the same process that listens: a proxy that gives each transaction another
        # connection, such as PgBouncer, tells its clients process numbers of its own.
        process, now = raw.execute(f"SELECT pg_backend_pid(), {now_sql()}").fetchone()
        notified, self._notified = self._notified, set()
        return notified if process == raw.info.backend_pid else {EVERY_ORG}, moment_of(now)

    def _note(self, notice: psycopg.Notify) -> None:
        if notice.channel == NAME:
            self._notified.add(notice.payload)

    def _look_on_sqlite(self) -> tuple[set[str], datetime]:
        raw, seen = connection.connection, self._newest
        bounds = f"SELECT MIN(id), MAX(id), {now_sql()} FROM {NAME}"  # noqa: S608
        oldest, newest, now = raw.execute(bounds).fetchone()
        self._newest = newest or 0
        if seen is None or (oldest or 0) > seen + 1:
            return {EVERY_ORG}, moment_of(now)
        new = f"SELECT DISTINCT org_id FROM {NAME} WHERE id > ? AND id <= ?"  # noqa: S608
        return {org_id for (org_id,) in raw.execute(new, (seen, self._newest))}, moment_of(now)


@cache
def wanted_triggers(vendor: str) -> dict[str, list[str]]:
    """Return the statements that create the triggers, by the trigger's name, which contains a digest of the rest."""
    return {trigger: statements for model in TABLES for trigger, statements in _triggers_of(model, vendor)}


def present_triggers(cursor: Any, vendor: str) -> set[str]:
    cursor.execute(_PRESENT[vendor])
    return {name for (name,) in cursor.fetchall()}


def drop_trigger(cursor: Any, trigger: str, vendor: str) -> None:
    if vendor != "postgresql":
        cursor.execute(f"DROP TRIGGER {trigger}")
        return
    cursor.execute("SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = %s", [trigger])
    (table,) = cursor.fetchone()
    cursor.execute(f"DROP TRIGGER {trigger} ON {table}")


def _next_moment(now: datetime) -> datetime:
    """Return when decisions change without a write: a price begins, a key has cooled down, a model is a day older."""
    moments: list[datetime | None] = [
        Price.objects.filter(effective_from__gt=now).aggregate(at=Min("effective_from"))["at"],
        # The keys of the platform are few.
        *(end for key in PlatformKey.objects.defer("sealed_key") for end in key.coolings(now).values()),
        start_of(now.date() + timedelta(days=1)),
    ]
    return min(moment for moment in moments if moment is not None)


def _triggers_of(model: type[models.Model], vendor: str) -> Iterator[tuple[str, list[str]]]:
    meta = model._meta  # noqa: SLF001 - Django's documented interface
    columns = [str(field.column) for field in meta.local_concrete_fields if field.name not in TABLES[model]]
    update = f"UPDATE OF {', '.join(sorted(columns))}"
    of_org = "id" if model is Org else "org_id" if "org_id" in columns else None
    if vendor == "postgresql":
        column = f"'{of_org}'" if of_org else ""
        parts = [
            (f"INSERT OR DELETE OR {update}", f"FOR EACH ROW EXECUTE FUNCTION {NAME}({column})"),
            ("TRUNCATE", f"FOR EACH STATEMENT EXECUTE FUNCTION {NAME}()"),
        ]
    else:
        parts = [
            (when, _row_on_sqlite(f"COALESCE({row}.{of_org}, '')" if of_org else "''"))
            for when, row in (("INSERT", "NEW"), ("DELETE", "OLD"), (update, "NEW"))
        ]
    for when, what in parts:
        rest = f"AFTER {when} ON {meta.db_table} {what}"
        trigger = f"{NAME}_{hashlib.sha256(rest.encode()).hexdigest()[:16]}"
        statements = [f"CREATE TRIGGER {trigger} {rest}"]
        if vendor == "postgresql":
            # Also for what a replication or a restore writes: https://www.postgresql.org/docs/17/sql-altertable.html
            statements.append(f"ALTER TABLE {meta.db_table} ENABLE ALWAYS TRIGGER {trigger}")
        yield trigger, statements


def _row_on_sqlite(org_id: str) -> str:
    return (
        f"BEGIN INSERT INTO {NAME} (org_id) VALUES ({org_id});"  # noqa: S608
        f" DELETE FROM {NAME} WHERE id <= LAST_INSERT_ROWID() - {ROWS_MAX}; END"
    )
