"""Triggers that reject every change of an audit event. On SQLite, a migration that rebuilds the table reinstalls them."""

from django.db import migrations

from rensei.core import append_only

TABLE = "audit_auditevent"


def install(apps, schema_editor):
    append_only.refuse_changes(schema_editor, TABLE, refusal="The audit log is append-only")


def remove(apps, schema_editor):
    append_only.allow_changes(schema_editor, TABLE)


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial")]

    operations = [migrations.RunPython(install, remove, elidable=False)]
