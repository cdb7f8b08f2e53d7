"""
Processes of an earlier version write anchors until they are restarted, without the columns of a hand-over.

On SQLite the changed columns rebuild the table, which drops its triggers.
"""

from django.db import migrations, models

from rensei.core import append_only


def install_again(apps, schema_editor):
    if schema_editor.connection.vendor == "sqlite":
        append_only.refuse_changes(
            schema_editor, "billing_ledgeranchor", refusal="The anchors of the ledger are append-only"
        )


class Migration(migrations.Migration):
    dependencies = [("billing", "0007_payer_label")]

    operations = [
        migrations.AlterField(
            model_name="ledgeranchor",
            name="next_key",
            field=models.CharField(blank=True, db_default="", default="", max_length=32),
        ),
        migrations.AlterField(
            model_name="ledgeranchor",
            name="old_key_known",
            field=models.BooleanField(db_default=False, default=False, editable=False),
        ),
        migrations.RunPython(install_again, migrations.RunPython.noop),
    ]
