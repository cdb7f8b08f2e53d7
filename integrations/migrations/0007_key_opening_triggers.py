"""Triggers that reject changes of the record of openings, and the deletion of what is younger than retention allows."""

from django.db import migrations

from rensei.core import append_only

TABLE = "integrations_keyopening"
# The least of `RENSEI_OPENINGS_KEPT_DAYS`.
DAYS = 30


def install(apps, schema_editor):
    append_only.refuse_changes_but_deletion(
        schema_editor, TABLE, refusal="The record of openings is append-only", dated="opened_at", days=DAYS
    )


def remove(apps, schema_editor):
    append_only.allow_changes(schema_editor, TABLE)


class Migration(migrations.Migration):
    dependencies = [("integrations", "0006_key_openings")]

    operations = [migrations.RunPython(install, remove, elidable=False)]
