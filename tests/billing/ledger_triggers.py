"""The ledger and its seals refuse every change. Tests that need one lift their triggers for as long as it takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection

TABLES = ("billing_costevent", "billing_ledgerseal", "billing_ledgeranchor", "billing_statement")
POSTGRESQL_TRIGGERS = ("no_change", "no_truncate")


@contextmanager
def triggers_lifted() -> Iterator[None]:
    """Take the ledger's triggers away for as long as the context is open."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            _alter(cursor, "DISABLE TRIGGER")
            try:
                yield
            finally:
                _alter(cursor, "ENABLE ALWAYS TRIGGER")
        else:
            names = ", ".join(f"'{table}'" for table in TABLES)
            cursor.execute(f"SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name IN ({names})")
            triggers = cursor.fetchall()
            for name, _ in triggers:
                cursor.execute(f"DROP TRIGGER {name}")
            try:
                yield
            finally:
                for _, sql in triggers:
                    cursor.execute(sql)


def _alter(cursor: Any, change: str) -> None:
    for table in TABLES:
        for name in POSTGRESQL_TRIGGERS:
            cursor.execute(f"ALTER TABLE {table} {change} {table}_{name}")
