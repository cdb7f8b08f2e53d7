from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("dispatch", "0019_sandbox_workspace_and_price"),
    ]

    operations = [
        migrations.AddField(
            model_name="attempt",
            name="agent_id",
            field=models.CharField(blank=True, db_default="", default="", max_length=64),
        ),
        migrations.AddField(
            model_name="attempt",
            name="parent_agent_id",
            field=models.CharField(blank=True, db_default="", default="", max_length=64),
        ),
    ]
