"""When a rotation has begun. Those that exist have, since their rows were written when they had."""

from django.db import migrations, models


def take_start(apps, schema_editor):
    apps.get_model("integrations", "Rotation").objects.update(begun_at=models.F("started_at"))


class Migration(migrations.Migration):
    dependencies = [("integrations", "0012_cooling_models")]

    operations = [
        migrations.AddField(model_name="rotation", name="begun_at", field=models.DateTimeField(blank=True, null=True)),
        migrations.RunPython(take_start, migrations.RunPython.noop),
    ]
