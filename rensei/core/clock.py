"""
The database's clock, which every process of one installation shares.

What runs, workflows and money are dated and compared by is this clock. What people own and sign in with (accounts,
tokens, keys, policies) is dated by `timezone.now`, the clock of the process, which needs no query.
"""

from datetime import UTC, datetime
from typing import Any

from django.db import connection
from django.utils.dateparse import parse_datetime


def database_now() -> datetime:
    """Read the current time, aware and in UTC, from the database rather than from this machine."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {now_sql()}")
        return moment_of(cursor.fetchone()[0])


def now_sql() -> str:
    """Return the expression of the current time, for a statement without parameters."""
    return "STATEMENT_TIMESTAMP()" if connection.vendor == "postgresql" else "STRFTIME('%Y-%m-%d %H:%M:%f', 'now')"


def moment_of(value: Any) -> datetime:
    """Convert a time that plain SQL has returned, aware and in UTC."""
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    moment = parse_datetime(value)
    assert moment is not None, value
    return moment.replace(tzinfo=UTC)
