"""
Remove indexes of keys that another index begins with, or that are empty in most rows.

They are removed by name: SQLite would copy the table to alter a field, and lose its triggers.
"""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

REMOVED = [
    "dispatch_attempt_run_id_53a6404f",
    "dispatch_run_host_id_a760c438",
    "dispatch_run_org_id_6b5aad6f",
    "dispatch_run_project_id_c2a39a6b",
]


class Migration(migrations.Migration):
    dependencies = [
        ("dispatch", "0015_sandbox_ends_at"),
        ("orgs", "0004_org_deletion"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AlterField(
                    model_name="attempt",
                    name="run",
                    field=models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="attempts",
                        to="dispatch.run",
                    ),
                ),
                migrations.AlterField(
                    model_name="run",
                    name="host",
                    field=models.ForeignKey(
                        blank=True,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="runs",
                        to="orgs.host",
                    ),
                ),
                migrations.AlterField(
                    model_name="run",
                    name="org",
                    field=models.ForeignKey(
                        db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name="runs", to="orgs.org"
                    ),
                ),
                migrations.AlterField(
                    model_name="run",
                    name="project",
                    field=models.ForeignKey(
                        blank=True,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="runs",
                        to="orgs.project",
                    ),
                ),
            ],
            database_operations=[
                migrations.RunSQL(f"DROP INDEX IF EXISTS {name}", migrations.RunSQL.noop) for name in REMOVED
            ],
        ),
        migrations.AddIndex(
            model_name="run",
            index=models.Index(
                condition=models.Q(("project__isnull", False)), fields=["project"], name="run_by_project"
            ),
        ),
        migrations.AddIndex(
            model_name="run",
            index=models.Index(condition=models.Q(("host__isnull", False)), fields=["host"], name="run_by_host"),
        ),
    ]
