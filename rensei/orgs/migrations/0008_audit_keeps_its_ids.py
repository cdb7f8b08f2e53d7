"""Audit events keep the ids of organizations and people that are deleted: the references are no constraints any more."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orgs", "0007_operator_issuer")]

    operations = [
        migrations.AlterField(
            "auditevent",
            "org",
            models.ForeignKey(
                blank=True,
                db_constraint=False,
                null=True,
                on_delete=django.db.models.deletion.DO_NOTHING,
                related_name="audit_events",
                to="orgs.org",
            ),
        ),
        migrations.AlterField(
            "auditevent",
            "user",
            models.ForeignKey(
                blank=True,
                db_constraint=False,
                null=True,
                on_delete=django.db.models.deletion.DO_NOTHING,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
    ]
