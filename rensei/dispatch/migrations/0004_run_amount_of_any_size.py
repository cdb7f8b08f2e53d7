from django.db import migrations

from rensei.core.whole_numbers import WholeNumberField, write_floats_out


def finish(apps, schema_editor):
    write_floats_out(schema_editor, table="dispatch_run", column="amount_picodollars")


class Migration(migrations.Migration):
    dependencies = [("dispatch", "0003_run_asked_model")]

    operations = [
        migrations.AlterField("run", "amount_picodollars", WholeNumberField(null=True)),
        migrations.RunPython(finish, migrations.RunPython.noop, elidable=False),
    ]
