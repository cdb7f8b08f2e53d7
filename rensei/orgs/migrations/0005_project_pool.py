from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("orgs", "0004_org_deletion"),
    ]

    operations = [
        migrations.AddField(
            model_name="project",
            name="pool",
            field=models.CharField(blank=True, db_default="", default="", max_length=63),
        ),
    ]
