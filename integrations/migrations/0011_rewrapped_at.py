"""When a data key was re-wrapped last. Of those that exist it is not known, so it may have been just now."""

from django.db import migrations, models
from django.utils import timezone


def assume_now(apps, schema_editor):
    apps.get_model("integrations", "DataKey").objects.update(rewrapped_at=timezone.now())


class Migration(migrations.Migration):
    dependencies = [("integrations", "0010_leaked_keys")]

    operations = [
        migrations.AddField(
            model_name="datakey", name="rewrapped_at", field=models.DateTimeField(blank=True, null=True)
        ),
        migrations.RunPython(assume_now, migrations.RunPython.noop),
    ]
