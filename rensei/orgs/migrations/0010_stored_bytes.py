"""What each organization stores is counted in a row of its own. `workflows.0002` counts what is there already."""

import django.db.models.deletion
from django.db import migrations, models


def make_rows(apps, schema_editor):
    stored = apps.get_model("orgs", "StoredBytes")
    for org_id in apps.get_model("orgs", "Org").objects.values_list("pk", flat=True):
        stored.objects.create(org_id=org_id)


class Migration(migrations.Migration):
    dependencies = [("orgs", "0009_membership_ends_at")]

    operations = [
        migrations.CreateModel(
            name="StoredBytes",
            fields=[
                (
                    "org",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="stored_bytes",
                        serialize=False,
                        to="orgs.org",
                    ),
                ),
                ("used", models.BigIntegerField(default=0)),
                ("held", models.BigIntegerField(default=0)),
                (
                    "limit_mib",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="Empty: the server's default; 0: nothing more is stored",
                        null=True,
                        verbose_name="limit, MiB",
                    ),
                ),
            ],
            options={"verbose_name": "stored bytes", "verbose_name_plural": "stored bytes"},
        ),
        migrations.RunPython(make_rows, migrations.RunPython.noop),
    ]
