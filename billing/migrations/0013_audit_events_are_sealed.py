"""
Audit events are append-only and sealed like the lines of the ledger. Those that are there are sealed first.

On SQLite, changing the anchors rebuilds their table, whose triggers go with that, so they are made again.
"""

from importlib import import_module

import django.db.models.deletion
from django.db import migrations, models

from rensei.core import append_only

AUDIT, SEALS, WAITING = "orgs_auditevent", "billing_auditseal", "billing_eventtoseal"
WAIT = "INSERT INTO billing_eventtoseal (event_id) SELECT id FROM orgs_auditevent"

anchors = import_module("billing.migrations.0010_one_chain_of_anchors")


def install(apps, schema_editor):
    anchors.install_again(apps, schema_editor)
    append_only.refuse_changes(schema_editor, AUDIT, refusal="The audit log is append-only")
    append_only.refuse_changes(schema_editor, SEALS, refusal="The seals of the audit log are append-only")
    append_only.put_on_list(schema_editor, AUDIT, waiting=WAITING)
    schema_editor.execute(WAIT, params=None)


def remove(apps, schema_editor):
    for table in (AUDIT, SEALS):
        append_only.remove(schema_editor, table)


class Migration(migrations.Migration):
    dependencies = [("billing", "0012_runs_at_once"), ("orgs", "0008_audit_keeps_its_ids")]

    operations = [
        migrations.CreateModel(
            name="EventToSeal",
            fields=[("event_id", models.BigIntegerField(primary_key=True, serialize=False))],
        ),
        migrations.CreateModel(
            name="AuditSeal",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("seq", models.PositiveBigIntegerField(unique=True)),
                ("event_id", models.BigIntegerField(unique=True)),
                ("digest", models.CharField(max_length=64)),
                ("sealed_at", models.DateTimeField()),
            ],
        ),
        migrations.AlterField(
            "ledgeranchor",
            "org",
            models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="ledger_anchors",
                to="orgs.org",
            ),
        ),
        migrations.AddConstraint(
            "ledgeranchor",
            models.UniqueConstraint(
                condition=models.Q(("org", None)), fields=("seq",), name="one_audit_anchor_per_place"
            ),
        ),
        migrations.RunPython(install, remove, elidable=False),
    ]
