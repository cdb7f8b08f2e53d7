"""PostgreSQL notifies workers of a queued run, and event streams of a new event, at the commit."""

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
UNDO = ["DROP FUNCTION dispatch_tell_run_event() CASCADE", "DROP FUNCTION dispatch_tell_queued_run() CASCADE"]


def _on_postgresql(statements):
    def execute(apps, schema_editor):
        if schema_editor.connection.vendor == "postgresql":
            for statement in statements:
                schema_editor.execute(statement)

    return execute


class Migration(migrations.Migration):
    dependencies = [("dispatch", "0001_initial")]

    operations = [migrations.RunPython(_on_postgresql(POSTGRESQL), _on_postgresql(UNDO))]
