"""
Remove indexes of keys that another index begins with, or that are empty in most rows.

They are removed by name: SQLite would copy the table to alter a field, and lose its triggers.
"""

import django.db.models.deletion
from django.db import migrations, models

REMOVED = [
    "billing_costevent_adjusts_id_4ddf0ada",
    "billing_costevent_org_id_3bbf0970",
]


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0008_anchor_defaults"),
        ("orgs", "0004_org_deletion"),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AlterField(
                    model_name="costevent",
                    name="adjusts",
                    field=models.ForeignKey(
                        blank=True,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="adjustments",
                        to="billing.costevent",
                    ),
                ),
                migrations.AlterField(
                    model_name="costevent",
                    name="org",
                    field=models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="cost_events",
                        to="orgs.org",
                    ),
                ),
            ],
            database_operations=[
                migrations.RunSQL(f"DROP INDEX IF EXISTS {name}", migrations.RunSQL.noop) for name in REMOVED
            ],
        ),
        migrations.AddIndex(
            model_name="costevent",
            index=models.Index(
                condition=models.Q(("adjusts__isnull", False)), fields=["adjusts"], name="cost_by_charge"
            ),
        ),
    ]
