"""
The database's clock, which every process of one installation shares.

What runs, workflows and money are dated and compared by is this clock. What people own and sign in with (accounts,
tokens, keys, policies) is dated by `timezone.now`, the clock of the process, which needs no query.
"""

from datetime import UTC, datetime

from django.db import connection
from django.utils.dateparse import parse_datetime


def database_now() -> datetime:
    """Read the current time, aware and in UTC, from the database rather than from this machine."""
    sql = (
        "SELECT STATEMENT_TIMESTAMP()"
        if connection.vendor == "postgresql"
        else "SELECT STRFTIME('%Y-%m-%d %H:%M:%f', 'now')"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql)
        value = cursor.fetchone()[0]
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    moment = parse_datetime(value)
    assert moment is not None, value
    return moment.replace(tzinfo=UTC)
