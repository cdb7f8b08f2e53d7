"""
Anchors become one chain, and what each witness was told is noted.

On SQLite this rebuilds the table of anchors, whose triggers go with that, so they are made again.
"""

from importlib import import_module

from django.db import migrations, models

seals = import_module("billing.migrations.0003_seals_are_append_only")


def install_again(apps, schema_editor):
    if schema_editor.connection.vendor == "sqlite":
        for statement in seals.SQLITE:
            if "ON billing_ledgeranchor" in statement:
                schema_editor.execute(statement, params=None)


class Migration(migrations.Migration):
    dependencies = [("billing", "0009_charge_per_attempt_and_model")]

    operations = [
        migrations.AddField("ledgeranchor", "counter", models.PositiveBigIntegerField(null=True, unique=True)),
        migrations.AddField("ledgeranchor", "previous", models.CharField(blank=True, default="", max_length=64)),
        migrations.AlterField("ledgeranchor", "previous", models.CharField(blank=True, max_length=64)),
        migrations.RunPython(install_again, migrations.RunPython.noop, elidable=False),
        migrations.CreateModel(
            name="LedgerWitness",
            fields=[
                ("name", models.CharField(max_length=300, primary_key=True, serialize=False)),
                ("counter", models.PositiveBigIntegerField(default=0)),
                ("told_at", models.DateTimeField(null=True)),
                ("last_error", models.CharField(blank=True, max_length=200)),
            ],
            options={"verbose_name_plural": "ledger witnesses"},
        ),
    ]
