from typing import Any

from django.db import migrations, models


def take_prices(apps: Any, schema_editor: Any) -> None:
    """Give the sandboxes that have a line the price of it: from now on the audit compares the two."""
    database = schema_editor.connection.alias
    lines = apps.get_model("billing", "CostEvent").objects.filter(kind="capacity", attempt_id=models.OuterRef("pk"))
    ended = apps.get_model("dispatch", "Sandbox").objects.filter(ended_at__isnull=False, vcpus__isnull=False)
    ended.using(database).update(second_picodollars=models.Subquery(lines.values("sandbox_second_picodollars")[:1]))


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0010_capacity_lines"),
        ("dispatch", "0018_sandbox_size"),
    ]

    operations = [
        migrations.AddField(
            model_name="sandbox",
            name="workspace_id",
            field=models.CharField(blank=True, db_default="", default="", max_length=120),
        ),
        migrations.AddField(
            model_name="sandbox",
            name="second_picodollars",
            field=models.PositiveBigIntegerField(null=True),
        ),
        migrations.RunPython(take_prices, migrations.RunPython.noop),
    ]
