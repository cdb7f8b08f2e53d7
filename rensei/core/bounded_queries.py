"""Queries that end after a time, for what callers may make arbitrarily slow, such as a search for words."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import OperationalError, connection, transaction

from rensei.core.errors import FieldError
from rensei.core.limits import limit

SEARCH_SECONDS = limit(
    2,
    "seconds",
    what="Search of runs, and of the audit log: time of the database",
    told="the caller: 400 `VALIDATION_FAILED`",
)
# SQLite compares the time each time that it has carried out so many instructions.
INSTRUCTIONS = 10_000


@contextmanager
def bounded_search() -> Iterator[None]:
    """
    End what the database does after `SEARCH_SECONDS`.

    :raises FieldError: if it was ended
    """
    try:
        if connection.vendor == "postgresql":
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL statement_timeout = '{int(SEARCH_SECONDS * 1000)}ms'")
                yield
                # A transaction around this one goes on without it.
                cursor.execute("SET LOCAL statement_timeout = DEFAULT")
        else:
            connection.ensure_connection()
            end = time.monotonic() + SEARCH_SECONDS
            connection.connection.set_progress_handler(lambda: time.monotonic() > end, INSTRUCTIONS)
            try:
                yield
            finally:
                connection.connection.set_progress_handler(None, 0)
    except OperationalError as fault:
        told = getattr(fault.__cause__, "sqlstate", "") or getattr(fault.__cause__, "sqlite_errorname", "")
        if told not in {"57014", "SQLITE_INTERRUPT"}:
            raise
        reason = f"This search took longer than {SEARCH_SECONDS} s. Use more or longer words, or a shorter time."
        raise FieldError(pointer="/query/q", reason=reason) from fault
