"""Transactions: the service that an endpoint or a worker calls opens them, and no other code does."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from django.db import IntegrityError, connection, transaction


def durable() -> AbstractContextManager[None]:
    """Open the outermost transaction. It raises inside another one, which is a bug."""
    return transaction.atomic(durable=True)


@contextmanager
def unique(refusal: Exception, *, durable: bool = False) -> Iterator[None]:
    """Write within a transaction, or a part of the open one, and raise a refusal where a row must be unique."""
    try:
        with transaction.atomic(durable=durable):
            yield
    except IntegrityError as fault:
        raise refusal from fault


@contextmanager
def snapshot() -> Iterator[None]:
    """
    Read everything as of one moment, for any duration, without blocking writers.

    Inside an open transaction nothing is opened, and reads are those of that transaction.
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
        # Django would begin with the write lock, as the settings require, and block every writer.
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
    Return this thread's connection to its pool, before waiting for another machine. The next query takes one.

    An open transaction would keep its locks meanwhile, so an outgoing call in one is a bug.
    """
    # A test may be one transaction itself, whose connection stays open. Django marks those in the same way.
    blocks: Sequence[Any] = connection.atomic_blocks
    assert all(block._from_testcase for block in blocks), "A call out in a transaction"  # noqa: SLF001
    # An event loop has no connection, and may not even close one.
    if connection.connection is not None and not connection.in_atomic_block:
        connection.close()
