"""Who opens a transaction: the service that a door or a worker calls, and nobody else."""

from contextlib import AbstractContextManager

from django.db import connection, transaction


def durable() -> AbstractContextManager[None]:
    """Open the outermost transaction. A second one around it is a bug, and raises."""
    return transaction.atomic(durable=True)


def assert_open() -> None:
    """Check that the caller has opened a transaction, for services that only work inside one."""
    assert connection.in_atomic_block, "This service runs inside its caller's transaction"
