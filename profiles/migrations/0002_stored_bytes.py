"""Each profile knows how many bytes it stores. Those that are there already are measured once."""

from django.db import migrations, models

MEASURE = "UPDATE profiles_modelprofile SET stored_bytes = 2048 + {system} + {provider_config}"


def measure(apps, schema_editor):
    size = "octet_length({}::text)" if schema_editor.connection.vendor == "postgresql" else "LENGTH(CAST({} AS BLOB))"
    schema_editor.execute(MEASURE.format(system=size.format("system"), provider_config=size.format("provider_config")))


class Migration(migrations.Migration):
    dependencies = [("profiles", "0001_initial")]

    operations = [
        migrations.AddField("modelprofile", "stored_bytes", models.PositiveBigIntegerField(default=0)),
        migrations.RunPython(measure, migrations.RunPython.noop),
    ]
