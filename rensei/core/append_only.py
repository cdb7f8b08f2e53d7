"""Triggers for append-only tables, as migrations install them on both databases."""

from django.db.backends.base.schema import BaseDatabaseSchemaEditor

# INSERT OR REPLACE deletes the old row, and fires its trigger only under PRAGMA recursive_triggers, which the
# settings enable: https://www.sqlite.org/pragma.html#pragma_recursive_triggers
SQLITE = [
    "CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} BEGIN SELECT RAISE(ABORT, '{refusal}'); END",
    "CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} BEGIN SELECT RAISE(ABORT, '{refusal}'); END",
]
# A row trigger does not fire on TRUNCATE, and only ENABLE ALWAYS works under session_replication_role = replica:
# https://www.postgresql.org/docs/15/sql-createtrigger.html, https://www.postgresql.org/docs/15/sql-altertable.html
POSTGRESQL = [
    """
    CREATE FUNCTION {table}_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION '{refusal}' USING ERRCODE = 'integrity_constraint_violation'; END $$
    """,
    """
    CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION {table}_refuse_change()
    """,
    """
    CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION {table}_refuse_change()
    """,
    "ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_no_change",
    "ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_no_truncate",
]
# Rows of an age may be deleted, by retention.
DELETE_OLD_SQLITE = [
    "CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} BEGIN SELECT RAISE(ABORT, '{refusal}'); END",
    """
    CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table}
    WHEN OLD.{dated} > STRFTIME('%Y-%m-%d %H:%M:%S', 'now', '-{days} days')
    BEGIN SELECT RAISE(ABORT, '{refusal}'); END
    """,
]
DELETE_OLD_POSTGRESQL = [
    """
    CREATE FUNCTION {table}_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' THEN
            IF OLD.{dated} <= STATEMENT_TIMESTAMP() - INTERVAL '{days} days' THEN RETURN OLD; END IF;
        END IF;
        RAISE EXCEPTION '{refusal}' USING ERRCODE = 'integrity_constraint_violation';
    END $$
    """,
    *POSTGRESQL[1:],
]
WAIT_SQLITE = [
    """
    CREATE TRIGGER {table}_waits_for_seal AFTER INSERT ON {table}
    BEGIN INSERT INTO {waiting} (event_id) VALUES (NEW.id); END
    """
]
WAIT_POSTGRESQL = [
    """
    CREATE FUNCTION {table}_wait_for_seal() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO {waiting} (event_id) VALUES (NEW.id); RETURN NULL; END $$
    """,
    """
    CREATE TRIGGER {table}_waits_for_seal AFTER INSERT ON {table}
    FOR EACH ROW EXECUTE FUNCTION {table}_wait_for_seal()
    """,
    "ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_waits_for_seal",
]


def refuse_changes(editor: BaseDatabaseSchemaEditor, table: str, *, refusal: str) -> None:
    """Reject each change and deletion of a row. On SQLite, a migration that rebuilds the table calls this again."""
    _execute(editor, SQLITE, POSTGRESQL, table=table, refusal=refusal)


def refuse_changes_but_deletion(
    editor: BaseDatabaseSchemaEditor, table: str, *, refusal: str, dated: str, days: int
) -> None:
    """As `refuse_changes`, but a row may be deleted when the time in its column `dated` is so many days ago."""
    _execute(
        editor, DELETE_OLD_SQLITE, DELETE_OLD_POSTGRESQL, table=table, refusal=refusal, dated=dated, days=str(days)
    )


def put_on_list(editor: BaseDatabaseSchemaEditor, table: str, *, waiting: str) -> None:
    """Add the id of each new row to the list of rows to be sealed. After a rebuild, as for `refuse_changes`."""
    _execute(editor, WAIT_SQLITE, WAIT_POSTGRESQL, table=table, waiting=waiting)


def allow_changes(editor: BaseDatabaseSchemaEditor, table: str) -> None:
    """Undo `refuse_changes`."""
    _drop(editor, table, function="refuse_change", triggers=("no_update", "no_delete"))


def list_no_more(editor: BaseDatabaseSchemaEditor, table: str) -> None:
    """Undo `put_on_list`."""
    _drop(editor, table, function="wait_for_seal", triggers=("waits_for_seal",))


def _drop(editor: BaseDatabaseSchemaEditor, table: str, *, function: str, triggers: tuple[str, ...]) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(f"DROP FUNCTION {table}_{function}() CASCADE", params=None)
    else:
        for trigger in triggers:
            editor.execute(f"DROP TRIGGER {table}_{trigger}", params=None)


def _execute(editor: BaseDatabaseSchemaEditor, sqlite: list[str], postgresql: list[str], **names: str) -> None:
    for statement in postgresql if editor.connection.vendor == "postgresql" else sqlite:
        editor.execute(statement.format(**names), params=None)
