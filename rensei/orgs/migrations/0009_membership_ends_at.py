"""The membership of an operator who enters an organization ends by itself."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orgs", "0008_audit_keeps_its_ids")]

    operations = [
        migrations.AddField("membership", "ends_at", models.DateTimeField(blank=True, db_index=True, null=True)),
    ]
