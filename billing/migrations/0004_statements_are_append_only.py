"""Triggers refuse every change of a closed statement. See 0002 on rebuilding a table on SQLite."""

from django.db import migrations

REFUSAL = "A closed statement stays as it is: what comes later is in the next one"
TABLE = "billing_statement"

SQLITE = [
    f"""
    CREATE TRIGGER {TABLE}_no_{verb} BEFORE {verb} ON {TABLE}
    BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END
    """
    for verb in ("update", "delete")
]
POSTGRESQL = [
    f"""
    CREATE FUNCTION billing_refuse_statement_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION '{REFUSAL}' USING ERRCODE = 'integrity_constraint_violation'; END $$
    """,
    f"""
    CREATE TRIGGER {TABLE}_no_change BEFORE UPDATE OR DELETE ON {TABLE}
    FOR EACH ROW EXECUTE FUNCTION billing_refuse_statement_change()
    """,
    f"""
    CREATE TRIGGER {TABLE}_no_truncate BEFORE TRUNCATE ON {TABLE}
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_statement_change()
    """,
    f"ALTER TABLE {TABLE} ENABLE ALWAYS TRIGGER {TABLE}_no_change",
    f"ALTER TABLE {TABLE} ENABLE ALWAYS TRIGGER {TABLE}_no_truncate",
]
UNDO_SQLITE = [f"DROP TRIGGER {TABLE}_no_{verb}" for verb in ("update", "delete")]
UNDO_POSTGRESQL = ["DROP FUNCTION billing_refuse_statement_change() CASCADE"]


def install(apps, schema_editor):
    for statement in POSTGRESQL if schema_editor.connection.vendor == "postgresql" else SQLITE:
        schema_editor.execute(statement, params=None)


def remove(apps, schema_editor):
    for statement in UNDO_POSTGRESQL if schema_editor.connection.vendor == "postgresql" else UNDO_SQLITE:
        schema_editor.execute(statement, params=None)


class Migration(migrations.Migration):
    dependencies = [("billing", "0003_seals_are_append_only")]

    operations = [migrations.RunPython(install, remove, elidable=False)]
