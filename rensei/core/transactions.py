"""Who opens a transaction: the service that a door or a worker calls, and nobody else."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from django.db import connection, transaction


def durable() -> AbstractContextManager[None]:
    """Open the outermost transaction. A second one around it is a bug, and raises."""
    return transaction.atomic(durable=True)


@contextmanager
def snapshot() -> Iterator[None]:
    """
    Read everything as it was at one moment, however long the reading takes, and let others write meanwhile.

    Inside an open transaction nothing is opened, and the reader sees what that transaction sees.
    https://www.postgresql.org/docs/17/transaction-iso.html, https://www.sqlite.org/isolation.html
    """
    if connection.in_atomic_block:
        yield
    elif connection.vendor == "postgresql":
        with durable():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield
    else:
        # Django would begin with the write lock, as the settings tell it to, and keep every writer waiting.
        with connection.cursor() as cursor:
            cursor.execute("BEGIN DEFERRED")
        try:
            yield
        finally:
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")


def assert_open() -> None:
    """Check that the caller has opened a transaction, for services that only work inside one."""
    assert connection.in_atomic_block, "This service runs inside its caller's transaction"


def leave_database() -> None:
    """
    Give this thread's connection back to its pool, before another machine is waited for. The next query takes one.

    An open transaction would keep its locks meanwhile, so a call out in one is a bug.
    """
    # A test may be one transaction itself, whose connection it keeps. Django knows those by the same mark.
    blocks: Sequence[Any] = connection.atomic_blocks
    assert all(block._from_testcase for block in blocks), "A call out in a transaction"  # noqa: SLF001
    # An event loop has no connection, and may not even close one.
    if connection.connection is not None and not connection.in_atomic_block:
        connection.close()
