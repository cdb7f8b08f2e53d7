"""PostgreSQL tells the workers that a run is queued, when its transaction commits."""

from django.db import migrations

POSTGRESQL = [
    """
    CREATE FUNCTION dispatch_tell_queued_run() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_notify('runs_queued', ''); RETURN NULL; END $$
    """,
    """
    CREATE TRIGGER dispatch_run_is_told AFTER INSERT OR UPDATE OF state ON dispatch_run
    FOR EACH ROW WHEN (NEW.state = 'QUEUED' AND NEW.auth_mode <> 'host-session')
    EXECUTE FUNCTION dispatch_tell_queued_run()
    """,
]
UNDO = [
    "DROP TRIGGER dispatch_run_is_told ON dispatch_run",
    "DROP FUNCTION dispatch_tell_queued_run()",
]


def _on_postgresql(statements):
    def execute(apps, schema_editor):
        if schema_editor.connection.vendor == "postgresql":
            for statement in statements:
                schema_editor.execute(statement)

    return execute


class Migration(migrations.Migration):
    dependencies = [("dispatch", "0007_stored_bytes")]

    operations = [migrations.RunPython(_on_postgresql(POSTGRESQL), _on_postgresql(UNDO))]
