"""
The database of the tests: where other processes find it, and how it is empty again after a test that committed.

Django truncates every table and then makes all permissions anew, which takes longer than most tests. A test writes into
a few tables, so a few are emptied, and what `migrate` itself has written stays.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import quote

import pytest
from django.db import connection, transaction
from django.test import TransactionTestCase

from tests.billing.ledger_triggers import TABLES as LEDGER_TABLES
from tests.billing.ledger_triggers import triggers_lifted

WRITTEN_BY_MIGRATE = {"auth_permission", "django_content_type"}


def database_url() -> str:
    """Write where this process's database is, for a process that it starts."""
    stored = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{stored['NAME']}"
    host = stored["HOST"]
    where = quote(host, safe="") if host.startswith("/") else host
    password = f":{quote(stored['PASSWORD'])}" if stored["PASSWORD"] else ""
    return f"postgres://{stored['USER']}{password}@{where}:{stored['PORT'] or 5432}/{stored['NAME']}"


@pytest.fixture(scope="session", autouse=True)
def _empty_after_each_test_that_committed() -> Iterator[None]:
    def empty_database(_test: Any) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                # Whoever still writes, as a server may, ends first. SQLite has one writer at a time anyway.
                cursor.execute(f"LOCK TABLE {', '.join(_tables())} IN ACCESS EXCLUSIVE MODE")
            cursor.execute(
                " UNION ALL ".join(f"SELECT '{name}' WHERE EXISTS (SELECT 1 FROM {name})" for name in _tables())
            )
            written = {name for (name,) in cursor.fetchall()}
            # The ledger, the audit log and their seals refuse to be emptied, but for this.
            with triggers_lifted(sorted(written & set(LEDGER_TABLES))):
                for name in written:
                    # References are checked at the end, by when nothing refers to anything.
                    cursor.execute(f"DELETE FROM {name}")
                if connection.vendor == "postgresql":
                    # A trigger is not put back on a table while references to it are still to be checked.
                    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", empty_database)
        yield


@cache
def _tables() -> list[str]:
    names = connection.introspection.django_table_names(only_existing=True, include_views=False)
    return sorted(set(names) - WRITTEN_BY_MIGRATE)
