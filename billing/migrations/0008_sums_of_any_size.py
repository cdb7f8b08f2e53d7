"""
Sums that may pass 2^63 are exact: numeric on PostgreSQL, text on SQLite.

On SQLite this rebuilds the tables, and with that of the statements their triggers go, so they are made again.
"""

from importlib import import_module

from django.db import migrations

from rensei.core.whole_numbers import WholeNumberField, write_floats_out

statements = import_module("billing.migrations.0004_statements_are_append_only")

COLUMNS = (
    ("billing_usagedaily", "amount_picodollars"),
    ("billing_usagedaily", "billed_picodollars"),
    ("billing_budgetusage", "used"),
    ("billing_budgetusage", "held"),
    ("billing_budgethold", "picodollars"),
    ("billing_statement", "total_picodollars"),
)


def finish(apps, schema_editor):
    for table, column in COLUMNS:
        write_floats_out(schema_editor, table=table, column=column)
    if schema_editor.connection.vendor == "sqlite":
        statements.install(apps, schema_editor)


class Migration(migrations.Migration):
    dependencies = [("billing", "0007_names_in_the_admin")]

    operations = [
        migrations.AlterField("budgethold", "picodollars", WholeNumberField()),
        migrations.AlterField("budgetusage", "held", WholeNumberField(default=0)),
        migrations.AlterField("budgetusage", "used", WholeNumberField(default=0)),
        migrations.AlterField("statement", "total_picodollars", WholeNumberField()),
        migrations.AlterField("usagedaily", "amount_picodollars", WholeNumberField(default=0)),
        migrations.AlterField("usagedaily", "billed_picodollars", WholeNumberField(default=0)),
        migrations.RunPython(finish, migrations.RunPython.noop, elidable=False),
    ]
