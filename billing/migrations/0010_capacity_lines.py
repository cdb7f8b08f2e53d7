"""
Lines of capacity: the seconds of sandboxes in the accounts that organizations have in clouds.

On SQLite a constraint is changed by a rebuild of the table, which drops its triggers: they are installed again.
"""

import importlib

import django.db.models.expressions
import django.db.models.functions.comparison
from django.db import migrations, models

from rensei.core import append_only


_TRIGGERS = importlib.import_module("billing.migrations.0002_triggers")
_TABLE = "billing_costevent"


def install_again(apps, schema_editor):
    if schema_editor.connection.vendor == "sqlite":
        append_only.refuse_changes(schema_editor, _TABLE, refusal=_TRIGGERS.REFUSALS[_TABLE])
        append_only.put_on_list(schema_editor, _TABLE, waiting=_TRIGGERS.LISTS[_TABLE])


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0009_fewer_indexes"),
        ("orgs", "0004_org_deletion"),
    ]

    operations = [
        # Backwards, this is the last one.
        migrations.RunPython(migrations.RunPython.noop, install_again, elidable=False),
        migrations.RemoveConstraint(
            model_name="costevent",
            name="adjustment_names_its_charge",
        ),
        migrations.RemoveConstraint(
            model_name="costevent",
            name="amount_is_tokens_times_price",
        ),
        migrations.AddField(
            model_name="costevent",
            name="sandbox_second_picodollars",
            field=models.PositiveBigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="costevent",
            name="sandbox_seconds",
            field=models.BigIntegerField(null=True),
        ),
        migrations.AlterField(
            model_name="costevent",
            name="kind",
            field=models.CharField(
                choices=[("charge", "Charge"), ("adjustment", "Adjustment"), ("capacity", "Capacity")], max_length=16
            ),
        ),
        migrations.AddIndex(
            model_name="costevent",
            index=models.Index(
                condition=models.Q(("kind", "capacity")), fields=["org", "occurred_at"], name="cost_of_capacity"
            ),
        ),
        migrations.AddConstraint(
            model_name="costevent",
            constraint=models.UniqueConstraint(
                condition=models.Q(("kind", "capacity")), fields=("attempt_id",), name="one_capacity_line_per_sandbox"
            ),
        ),
        migrations.AddConstraint(
            model_name="costevent",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("adjusts", None), ("kind__in", ["charge", "capacity"])),
                    models.Q(("adjusts__isnull", False), ("kind", "adjustment")),
                    _connector="OR",
                ),
                name="adjustment_names_its_charge",
            ),
        ),
        migrations.AddConstraint(
            model_name="costevent",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("kind", "capacity"),
                    models.Q(
                        ("amount_picodollars", None),
                        ("cache_read_picodollars", None),
                        ("cache_write_1h_picodollars", None),
                        ("cache_write_5m_picodollars", None),
                        ("input_picodollars", None),
                        ("output_picodollars", None),
                        ("web_search_picodollars", None),
                    ),
                    models.Q(
                        models.Q(
                            ("web_search_requests", 0), ("web_search_picodollars__isnull", False), _connector="OR"
                        ),
                        (
                            "amount_picodollars",
                            django.db.models.expressions.CombinedExpression(
                                django.db.models.expressions.CombinedExpression(
                                    django.db.models.expressions.CombinedExpression(
                                        django.db.models.expressions.CombinedExpression(
                                            django.db.models.expressions.CombinedExpression(
                                                django.db.models.expressions.CombinedExpression(
                                                    models.F("input_tokens"), "*", models.F("input_picodollars")
                                                ),
                                                "+",
                                                django.db.models.expressions.CombinedExpression(
                                                    models.F("output_tokens"), "*", models.F("output_picodollars")
                                                ),
                                            ),
                                            "+",
                                            django.db.models.expressions.CombinedExpression(
                                                models.F("cache_read_tokens"), "*", models.F("cache_read_picodollars")
                                            ),
                                        ),
                                        "+",
                                        django.db.models.expressions.CombinedExpression(
                                            models.F("cache_write_5m_tokens"),
                                            "*",
                                            models.F("cache_write_5m_picodollars"),
                                        ),
                                    ),
                                    "+",
                                    django.db.models.expressions.CombinedExpression(
                                        models.F("cache_write_1h_tokens"), "*", models.F("cache_write_1h_picodollars")
                                    ),
                                ),
                                "+",
                                django.db.models.expressions.CombinedExpression(
                                    models.F("web_search_requests"),
                                    "*",
                                    django.db.models.functions.comparison.Coalesce(
                                        models.F("web_search_picodollars"), 0
                                    ),
                                ),
                            ),
                        ),
                        ("amount_picodollars__isnull", False),
                        ("cache_read_picodollars__isnull", False),
                        ("cache_write_1h_picodollars__isnull", False),
                        ("cache_write_5m_picodollars__isnull", False),
                        ("input_picodollars__isnull", False),
                        ("output_picodollars__isnull", False),
                    ),
                    _connector="OR",
                ),
                name="amount_is_tokens_times_price",
            ),
        ),
        migrations.AddConstraint(
            model_name="costevent",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        models.Q(("kind", "capacity"), _negated=True),
                        ("sandbox_second_picodollars", None),
                        ("sandbox_seconds", None),
                    ),
                    models.Q(
                        ("cache_read_picodollars", None),
                        ("cache_read_tokens", 0),
                        ("cache_write_1h_picodollars", None),
                        ("cache_write_1h_tokens", 0),
                        ("cache_write_5m_picodollars", None),
                        ("cache_write_5m_tokens", 0),
                        ("input_picodollars", None),
                        ("input_tokens", 0),
                        ("kind", "capacity"),
                        ("output_picodollars", None),
                        ("output_tokens", 0),
                        ("sandbox_seconds__gte", 0),
                        ("sandbox_seconds__isnull", False),
                        ("web_search_picodollars", None),
                        ("web_search_requests", 0),
                        models.Q(
                            models.Q(("amount_picodollars", None), ("sandbox_second_picodollars", None)),
                            models.Q(
                                (
                                    "amount_picodollars",
                                    django.db.models.expressions.CombinedExpression(
                                        models.F("sandbox_seconds"), "*", models.F("sandbox_second_picodollars")
                                    ),
                                ),
                                ("amount_picodollars__isnull", False),
                                ("sandbox_second_picodollars__isnull", False),
                            ),
                            _connector="OR",
                        ),
                    ),
                    _connector="OR",
                ),
                name="capacity_is_seconds_times_price",
            ),
        ),
        migrations.RunPython(install_again, migrations.RunPython.noop, elidable=False),
    ]
