"""The words of runs, their index in each database, and the words of the inputs that are stored already."""

import django.db.models.deletion
from django.db import migrations, models

from rensei.dispatch import search

POSTGRESQL = [
    """
    ALTER TABLE dispatch_searchentry ADD COLUMN vector tsvector
    GENERATED ALWAYS AS (array_to_tsvector(array_remove(string_to_array(words, ' '), ''))) STORED
    """,
    "CREATE INDEX dispatch_searchentry_vector ON dispatch_searchentry USING gin (vector)",
]
# Words are cut before they are stored, so the tokenizer only has to part them at spaces. The beginnings that are indexed
# are the key of an organization, `=`, and three characters.
SQLITE = [
    """
    CREATE VIRTUAL TABLE dispatch_searchwords USING fts5(
        words, content='dispatch_searchentry', content_rowid='id', tokenize="ascii tokenchars '=_'", prefix='12'
    )
    """,
    """
    CREATE TRIGGER dispatch_searchentry_added AFTER INSERT ON dispatch_searchentry BEGIN
        INSERT INTO dispatch_searchwords(rowid, words) VALUES (new.id, new.words);
    END
    """,
    """
    CREATE TRIGGER dispatch_searchentry_removed AFTER DELETE ON dispatch_searchentry BEGIN
        INSERT INTO dispatch_searchwords(dispatch_searchwords, rowid, words) VALUES ('delete', old.id, old.words);
    END
    """,
    """
    CREATE TRIGGER dispatch_searchentry_changed AFTER UPDATE OF words ON dispatch_searchentry BEGIN
        INSERT INTO dispatch_searchwords(dispatch_searchwords, rowid, words) VALUES ('delete', old.id, old.words);
        INSERT INTO dispatch_searchwords(rowid, words) VALUES (new.id, new.words);
    END
    """,
]
UNDO = {
    "postgresql": ["ALTER TABLE dispatch_searchentry DROP COLUMN vector"],
    "sqlite": [
        "DROP TRIGGER dispatch_searchentry_added",
        "DROP TRIGGER dispatch_searchentry_removed",
        "DROP TRIGGER dispatch_searchentry_changed",
        "DROP TABLE dispatch_searchwords",
    ],
}
# An input may have megabytes.
PAGE_SIZE = 20
OF_RUN = [
    *("id", "org_id", "created_by_id", "error"),
    *("profile_id", "profile_name", "asked_model_id", "model_id", "served_model_id"),
]


def _execute(statements):
    def execute(apps, schema_editor):
        for statement in statements[schema_editor.connection.vendor]:
            schema_editor.execute(statement)

    return execute


def _index_stored(apps, schema_editor):
    """Index the inputs in the order of their runs, which the search relies on for the newest first."""
    inputs = apps.get_model("dispatch", "RunInput").objects.select_related("run").order_by("pk")
    inputs = inputs.only("body", *(f"run__{name}" for name in OF_RUN))
    entries = apps.get_model("dispatch", "SearchEntry").objects
    page = list(inputs[:PAGE_SIZE])
    while page:
        made = [search.entry_of(one.run, one) for one in page]
        entries.bulk_create(
            [
                entries.model(
                    run_id=entry.run_id,
                    excerpt=entry.excerpt,
                    words=entry.words + (search.words_of_error(one.run, one.run.error) if one.run.error else ""),
                )
                for one, entry in zip(page, made, strict=True)
            ]
        )
        page = list(inputs.filter(pk__gt=page[-1].pk)[:PAGE_SIZE])


class Migration(migrations.Migration):
    dependencies = [("dispatch", "0003_run_token")]

    operations = [
        migrations.CreateModel(
            name="SearchEntry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("excerpt", models.CharField(blank=True, max_length=160)),
                ("words", models.TextField()),
                (
                    "run",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="search_entry",
                        to="dispatch.runinput",
                    ),
                ),
            ],
        ),
        migrations.RunPython(_execute({"postgresql": POSTGRESQL, "sqlite": SQLITE}), _execute(UNDO)),
        migrations.RunPython(_index_stored, migrations.RunPython.noop),
    ]
