"""
Triggers refuse every change of the ledger, of seals, anchors and closed statements, and list new rows for the sealer.

The lists are filled in the transaction of the row, so a row committed late with an early id is sealed like any
other. On SQLite, rebuilding a table drops its triggers: a later migration that does so installs them again.
"""

from django.db import migrations

from rensei.core import append_only

REFUSALS = {
    "billing_costevent": "The cost ledger is append-only: correct a charge by an adjustment",
    "billing_ledgerseal": "The seals of the ledger are append-only",
    "billing_ledgeranchor": "The anchors of the ledger are append-only",
    "billing_auditseal": "The seals of the audit log are append-only",
    "billing_statement": "A closed statement stays as it is: what comes later is in the next one",
}
LISTS = {"billing_costevent": "billing_linetoseal", "audit_auditevent": "billing_eventtoseal"}


def install(apps, schema_editor):
    for table, refusal in REFUSALS.items():
        append_only.refuse_changes(schema_editor, table, refusal=refusal)
    for table, waiting in LISTS.items():
        append_only.put_on_list(schema_editor, table, waiting=waiting)


def remove(apps, schema_editor):
    for table in LISTS:
        append_only.list_no_more(schema_editor, table)
    for table in REFUSALS:
        append_only.allow_changes(schema_editor, table)


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial"), ("audit", "0002_triggers")]

    operations = [migrations.RunPython(install, remove, elidable=False)]
