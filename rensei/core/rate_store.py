"""The counts of rate limits, stored for all processes together. A count is stored until its window has ended."""

from collections.abc import Mapping
from typing import NamedTuple

from django.db import connection

from rensei.core.models import StoredValue, WindowCount

ROWS_AT_ONCE = 500
KEPT_SECONDS = 60
# One statement for a new window, for an open one, and for one that has ended meanwhile.
ADD = """
    INSERT INTO core_windowcount (key, count, ends_at) VALUES {rows}
    ON CONFLICT (key) DO UPDATE SET
        count = excluded.count + CASE WHEN core_windowcount.ends_at > %s THEN core_windowcount.count ELSE 0 END,
        ends_at = CASE WHEN core_windowcount.ends_at > %s THEN core_windowcount.ends_at ELSE excluded.ends_at END
    RETURNING key, count, ends_at
"""


class Window(NamedTuple):
    """How much has been counted in a window of time, and when it ends, in seconds since 1970."""

    total: int
    ends_at: float


def add(counts: Mapping[str, Window], *, now: float) -> dict[str, Window]:
    """
    Add to the counts, and return their new values.

    A window that is open in the database keeps its end; otherwise a new one begins, and ends as given.

    :raises DatabaseError: if the database does not answer
    """
    # In sorted order, so that two processes wait for one another and never deadlock.
    keys = sorted(counts)
    stored: dict[str, Window] = {}
    for start in range(0, len(keys), ROWS_AT_ONCE):
        part = keys[start : start + ROWS_AT_ONCE]
        sql = ADD.format(rows=", ".join(["(%s, %s, %s)"] * len(part)))
        values = [value for key in part for value in (key, counts[key].total, counts[key].ends_at)]
        with connection.cursor() as cursor:
            cursor.execute(sql, [*values, now, now])
            stored |= {key: Window(int(count), ends_at) for key, count, ends_at in cursor.fetchall()}
    return stored


def clear(key: str) -> None:
    """Delete a count."""
    WindowCount.objects.filter(key=key).delete()


def forget_ended(*, now: float) -> None:
    """Delete the windows that have ended."""
    WindowCount.objects.filter(ends_at__lt=now - KEPT_SECONDS).delete()
    StoredValue.objects.filter(expires_at__lt=now - KEPT_SECONDS).delete()
