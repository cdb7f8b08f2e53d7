"""A hand-over may say that others know the old key. On SQLite the new column rebuilds the table without its triggers."""

from django.db import migrations, models

from rensei.core import append_only


def install_again(apps, schema_editor):
    if schema_editor.connection.vendor == "sqlite":
        append_only.refuse_changes(
            schema_editor, "billing_ledgeranchor", refusal="The anchors of the ledger are append-only"
        )


class Migration(migrations.Migration):
    dependencies = [("billing", "0005_anchor_handover_index")]

    operations = [
        migrations.AddField(
            model_name="ledgeranchor", name="old_key_known", field=models.BooleanField(default=False, editable=False)
        ),
        migrations.RunPython(install_again, migrations.RunPython.noop),
    ]
