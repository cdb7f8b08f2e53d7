"""
Triggers refuse every change of the cost ledger but a new line.

On SQLite, rebuilding a table drops its triggers: a later migration that alters CostEvent in a way that Django
makes by a rebuild has to run `install` again. A test changes lines on both databases, so it would notice.
"""

from django.db import migrations

REFUSAL = "The cost ledger is append-only: correct a charge by an adjustment"

# INSERT OR REPLACE deletes the old row, and fires its trigger only under PRAGMA recursive_triggers, which the
# settings switch on: https://www.sqlite.org/pragma.html#pragma_recursive_triggers
SQLITE = [
    f"""
    CREATE TRIGGER billing_costevent_no_{verb} BEFORE {verb} ON billing_costevent
    BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END
    """
    for verb in ("update", "delete")
]
# A row trigger does not see TRUNCATE, and only ENABLE ALWAYS holds under session_replication_role = replica:
# https://www.postgresql.org/docs/15/sql-createtrigger.html, https://www.postgresql.org/docs/15/sql-altertable.html
POSTGRESQL = [
    f"""
    CREATE FUNCTION billing_refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION '{REFUSAL}' USING ERRCODE = 'integrity_constraint_violation'; END $$
    """,
    """
    CREATE TRIGGER billing_costevent_no_change BEFORE UPDATE OR DELETE ON billing_costevent
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_ledger_change()
    """,
    """
    CREATE TRIGGER billing_costevent_no_truncate BEFORE TRUNCATE ON billing_costevent
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_ledger_change()
    """,
    "ALTER TABLE billing_costevent ENABLE ALWAYS TRIGGER billing_costevent_no_change",
    "ALTER TABLE billing_costevent ENABLE ALWAYS TRIGGER billing_costevent_no_truncate",
]
UNDO_SQLITE = ["DROP TRIGGER billing_costevent_no_update", "DROP TRIGGER billing_costevent_no_delete"]
UNDO_POSTGRESQL = ["DROP FUNCTION billing_refuse_ledger_change() CASCADE"]


def install(apps, schema_editor):
    for statement in POSTGRESQL if schema_editor.connection.vendor == "postgresql" else SQLITE:
        schema_editor.execute(statement, params=None)


def remove(apps, schema_editor):
    for statement in UNDO_POSTGRESQL if schema_editor.connection.vendor == "postgresql" else UNDO_SQLITE:
        schema_editor.execute(statement, params=None)


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial")]

    operations = [migrations.RunPython(install, remove, elidable=False)]
