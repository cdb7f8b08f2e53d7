"""
The ledger and its seals refuse to be emptied, which is what a transactional test does after itself.

The triggers are lifted for that flush and for nothing else, and stand again before the next test.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection
from django.db.backends.base.operations import BaseDatabaseOperations

TABLES = ("billing_costevent", "billing_ledgerseal", "billing_ledgeranchor", "billing_statement")
POSTGRESQL_TRIGGERS = ("no_change", "no_truncate")


@pytest.fixture(scope="session", autouse=True)
def _lift_ledger_triggers_for_the_flush() -> Iterator[None]:
    flush = BaseDatabaseOperations.execute_sql_flush

    def flush_with_triggers_lifted(operations: Any, sql_list: list[str]) -> None:
        with triggers_lifted():
            flush(operations, sql_list)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseDatabaseOperations, "execute_sql_flush", flush_with_triggers_lifted)
        yield


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
