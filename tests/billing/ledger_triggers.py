"""
Ledger, audit log, seals and the record of openings refuse every change.

Tests that need one lift the triggers for as long as it takes.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection

TABLES = (
    "billing_auditseal",
    "billing_costevent",
    "billing_ledgeranchor",
    "billing_ledgerseal",
    "billing_statement",
    "audit_auditevent",
    "integrations_keyopening",
)
POSTGRESQL_TRIGGERS = ("no_change", "no_truncate")


@contextmanager
def triggers_lifted(tables: Collection[str] = TABLES) -> Iterator[None]:
    """Take the triggers of the tables away for as long as the context is open."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            _alter(cursor, tables, "DISABLE TRIGGER")
            try:
                yield
            finally:
                _alter(cursor, tables, "ENABLE ALWAYS TRIGGER")
        else:
            names = ", ".join(f"'{table}'" for table in tables)
            cursor.execute(f"SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name IN ({names})")
            triggers = cursor.fetchall()
            for name, _ in triggers:
                cursor.execute(f"DROP TRIGGER {name}")
            try:
                yield
            finally:
                for _, sql in triggers:
                    cursor.execute(sql)


def _alter(cursor: Any, tables: Collection[str], change: str) -> None:
    for table in tables:
        for name in POSTGRESQL_TRIGGERS:
            cursor.execute(f"ALTER TABLE {table} {change} {table}_{name}")


def leave_out_audit_events() -> None:
    """Take away the events of the fixtures, so that a test of the ledger alone sees the ledger's anchors alone."""
    with triggers_lifted(["audit_auditevent"]), connection.cursor() as cursor:
        cursor.execute("DELETE FROM audit_auditevent")
        cursor.execute("DELETE FROM billing_eventtoseal")
