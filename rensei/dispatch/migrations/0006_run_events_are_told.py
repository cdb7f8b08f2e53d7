"""PostgreSQL tells the processes that follow runs which of them has a new event, when its transaction commits."""

from django.db import migrations

POSTGRESQL = [
    """
    CREATE FUNCTION dispatch_tell_run_event() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_notify('run_events', NEW.run_id); RETURN NULL; END $$
    """,
    """
    CREATE TRIGGER dispatch_runchunk_is_told AFTER INSERT ON dispatch_runchunk
    FOR EACH ROW EXECUTE FUNCTION dispatch_tell_run_event()
    """,
]
UNDO = [
    "DROP TRIGGER dispatch_runchunk_is_told ON dispatch_runchunk",
    "DROP FUNCTION dispatch_tell_run_event()",
]


def _on_postgresql(statements):
    def execute(apps, schema_editor):
        if schema_editor.connection.vendor == "postgresql":
            for statement in statements:
                schema_editor.execute(statement)

    return execute


class Migration(migrations.Migration):
    dependencies = [("dispatch", "0005_turns")]

    operations = [migrations.RunPython(_on_postgresql(POSTGRESQL), _on_postgresql(UNDO))]
