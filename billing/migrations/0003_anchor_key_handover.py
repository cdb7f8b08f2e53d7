"""An anchor may hand over to another key. On SQLite the new column rebuilds the table, which drops its triggers."""

from django.db import migrations, models

from rensei.core import append_only


def install_again(apps, schema_editor):
    if schema_editor.connection.vendor == "sqlite":
        append_only.refuse_changes(
            schema_editor, "billing_ledgeranchor", refusal="The anchors of the ledger are append-only"
        )


class Migration(migrations.Migration):
    dependencies = [("billing", "0002_triggers")]

    operations = [
        migrations.RemoveConstraint(model_name="ledgeranchor", name="one_audit_anchor_per_place"),
        migrations.AddField(
            model_name="ledgeranchor", name="next_key", field=models.CharField(blank=True, max_length=32)
        ),
        migrations.AddConstraint(
            model_name="ledgeranchor",
            constraint=models.UniqueConstraint(
                fields=("seq",), condition=models.Q(("next_key", ""), ("org", None)), name="one_audit_anchor_per_place"
            ),
        ),
        migrations.RunPython(install_again, migrations.RunPython.noop),
    ]
