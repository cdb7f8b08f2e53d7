"""
Seals and anchors are append-only like the ledger itself, and every new line is put on the list of those to seal.

The list is filled in the transaction of the line, by a trigger, so a line that is committed late under an early id
is sealed like any other, and the sealer never has to search the ledger. See 0002 on rebuilding a table on SQLite.
"""

from django.db import migrations

REFUSAL = "The seals of the ledger are append-only"
TABLES = ("billing_ledgerseal", "billing_ledgeranchor")

SQLITE = [
    """
    CREATE TRIGGER billing_costevent_waits_for_seal AFTER INSERT ON billing_costevent
    BEGIN INSERT INTO billing_linetoseal (event_id) VALUES (NEW.id); END
    """,
    *(
        f"""
        CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END
        """
        for table in TABLES
        for verb in ("update", "delete")
    ),
]
POSTGRESQL = [
    """
    CREATE FUNCTION billing_wait_for_seal() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO billing_linetoseal (event_id) VALUES (NEW.id); RETURN NULL; END $$
    """,
    """
    CREATE TRIGGER billing_costevent_waits_for_seal AFTER INSERT ON billing_costevent
    FOR EACH ROW EXECUTE FUNCTION billing_wait_for_seal()
    """,
    "ALTER TABLE billing_costevent ENABLE ALWAYS TRIGGER billing_costevent_waits_for_seal",
    f"""
    CREATE FUNCTION billing_refuse_seal_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION '{REFUSAL}' USING ERRCODE = 'integrity_constraint_violation'; END $$
    """,
    *(
        statement
        for table in TABLES
        for statement in (
            f"""
            CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table}
            FOR EACH ROW EXECUTE FUNCTION billing_refuse_seal_change()
            """,
            f"""
            CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_seal_change()
            """,
            f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_no_change",
            f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_no_truncate",
        )
    ),
]
# Lines that were written before there were seals are sealed first.
WAIT = "INSERT INTO billing_linetoseal (event_id) SELECT id FROM billing_costevent"
UNDO_SQLITE = [
    "DROP TRIGGER billing_costevent_waits_for_seal",
    *(f"DROP TRIGGER {table}_no_{verb}" for table in TABLES for verb in ("update", "delete")),
]
UNDO_POSTGRESQL = [
    "DROP FUNCTION billing_wait_for_seal() CASCADE",
    "DROP FUNCTION billing_refuse_seal_change() CASCADE",
]


def install(apps, schema_editor):
    for statement in POSTGRESQL if schema_editor.connection.vendor == "postgresql" else SQLITE:
        schema_editor.execute(statement, params=None)
    schema_editor.execute(WAIT, params=None)


def remove(apps, schema_editor):
    for statement in UNDO_POSTGRESQL if schema_editor.connection.vendor == "postgresql" else UNDO_SQLITE:
        schema_editor.execute(statement, params=None)


class Migration(migrations.Migration):
    dependencies = [("billing", "0002_ledger_is_append_only")]

    operations = [migrations.RunPython(install, remove, elidable=False)]
