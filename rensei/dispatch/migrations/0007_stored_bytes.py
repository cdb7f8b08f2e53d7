"""Each run knows how many bytes it stores. Those that are there already are measured once."""

from django.db import migrations, models

# The figures of `rensei/orgs/storage.py` and `rensei/dispatch/stored_bytes.py` at the time.
EVENTS = """
    UPDATE dispatch_run SET event_bytes = COALESCE(
        (SELECT SUM(64 + {data}) FROM dispatch_runchunk WHERE dispatch_runchunk.run_id = dispatch_run.id), 0)
    WHERE via = 'queue'
"""
RUNS = """
    UPDATE dispatch_run SET stored_bytes = 2048 + {trace} + {metadata} + {effort_applied} + COALESCE({prices}, 0)
        + {output_text} + {output_content} + COALESCE({error}, 0)
        + CASE WHEN state IN ('QUEUED', 'RUNNING') THEN 0 ELSE event_bytes END
        + COALESCE((SELECT {body} FROM dispatch_runinput WHERE dispatch_runinput.run_id = dispatch_run.id), 0)
    WHERE via = 'queue' OR state NOT IN ('QUEUED', 'RUNNING')
"""
COLUMNS = [
    "data", "trace", "metadata", "effort_applied", "prices", "output_text", "output_content", "error", "body"
]  # fmt: skip


def measure(apps, schema_editor):
    size = "octet_length({}::text)" if schema_editor.connection.vendor == "postgresql" else "LENGTH(CAST({} AS BLOB))"
    sizes = {column: size.format(column) for column in COLUMNS}
    for statement in (EVENTS, RUNS):
        schema_editor.execute(statement.format(**sizes))


class Migration(migrations.Migration):
    dependencies = [("dispatch", "0006_run_events_are_told")]

    operations = [
        migrations.AddField("run", "stored_bytes", models.PositiveBigIntegerField(default=0)),
        migrations.AddField("run", "event_bytes", models.PositiveBigIntegerField(default=0)),
        migrations.RunPython(measure, migrations.RunPython.noop),
    ]
