"""
Remove the second indexes of text columns, which Django creates for LIKE and no query uses, from former installations.

They are found by their operator class: https://www.postgresql.org/docs/17/indexes-opclass.html
"""

from django.db import migrations

REMOVE = """
DO $$
DECLARE
    found text;
BEGIN
    FOR found IN
        SELECT format('%I.%I', pg_namespace.nspname, pg_class.relname)
        FROM pg_index
        JOIN pg_class ON pg_class.oid = pg_index.indexrelid
        JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
        JOIN pg_opclass ON pg_opclass.oid = pg_index.indclass[0]
        WHERE pg_namespace.nspname = current_schema()
            AND pg_class.relname LIKE '%\\_like'
            AND pg_opclass.opcname IN ('varchar_pattern_ops', 'text_pattern_ops')
    LOOP
        EXECUTE 'DROP INDEX ' || found;
    END LOOP;
END
$$
"""


def remove_like_indexes(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(REMOVE, params=None)


class Migration(migrations.Migration):
    dependencies = [("core", "0003_claude_code")]
    operations = [migrations.RunPython(remove_like_indexes, migrations.RunPython.noop)]
