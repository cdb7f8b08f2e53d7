"""Each version and run of a workflow knows how many bytes it stores, and each organization how many all of it are."""

from django.db import migrations, models

# The figures of `rensei/orgs/storage.py`, `rensei/dispatch/stored_bytes.py` and `stored_bytes.py` at the time.
VERSIONS = "UPDATE workflows_workflowversion SET stored_bytes = 2048 + {document} + {nodes}"
RUNS = """
    UPDATE workflows_workflowrun SET stored_bytes = 2048 + COALESCE({input}, 0) + 512 * (
        SELECT COUNT(*) FROM workflows_noderun WHERE workflows_noderun.workflow_run_id = workflows_workflowrun.id)
"""
COLUMNS = ["document", "nodes", "input"]
ORGS = """
    UPDATE orgs_storedbytes SET
    used = COALESCE((SELECT SUM(stored_bytes) FROM dispatch_run r WHERE r.org_id = orgs_storedbytes.org_id), 0)
        + COALESCE((SELECT SUM(stored_bytes) FROM profiles_modelprofile p WHERE p.org_id = orgs_storedbytes.org_id), 0)
        + COALESCE((SELECT SUM(stored_bytes) FROM workflows_workflowrun r WHERE r.org_id = orgs_storedbytes.org_id), 0)
        + COALESCE((SELECT SUM(v.stored_bytes) FROM workflows_workflowversion v
            JOIN workflows_workflow w ON w.id = v.workflow_id WHERE w.org_id = orgs_storedbytes.org_id), 0),
    held = COALESCE((SELECT SUM(3 * (16384 + 32 * CAST(max_tokens AS BIGINT))) FROM dispatch_run r
        WHERE r.org_id = orgs_storedbytes.org_id AND r.state IN ('QUEUED', 'RUNNING') AND r.via = 'queue'), 0)
"""


def measure(apps, schema_editor):
    size = "octet_length({}::text)" if schema_editor.connection.vendor == "postgresql" else "LENGTH(CAST({} AS BLOB))"
    sizes = {column: size.format(column) for column in COLUMNS}
    for statement in (VERSIONS, RUNS, ORGS):
        schema_editor.execute(statement.format(**sizes))


class Migration(migrations.Migration):
    dependencies = [
        ("workflows", "0001_initial"),
        ("dispatch", "0007_stored_bytes"),
        ("profiles", "0002_stored_bytes"),
        ("orgs", "0010_stored_bytes"),
    ]

    operations = [
        migrations.AddField("workflowversion", "stored_bytes", models.PositiveBigIntegerField(default=0)),
        migrations.AddField("workflowrun", "stored_bytes", models.PositiveBigIntegerField(default=0)),
        migrations.RunPython(measure, migrations.RunPython.noop),
    ]
