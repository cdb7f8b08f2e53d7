"""Threads that ask the database for a call hold no connection when they rest."""

import asyncio
from typing import Any

import pytest
from django.db import connections

from rensei.gateway.threads import in_thread
from rensei.orgs.models import User

pytestmark = pytest.mark.django_db(transaction=True)


def ask() -> Any:
    """Use this thread's connection, and name it."""
    User.objects.count()
    found = connections["default"]
    assert found.connection is not None
    return found


class TestInThread:
    def test_gives_the_connection_back(self) -> None:
        assert asyncio.run(in_thread(ask)).connection is None

    def test_gives_it_back_when_the_work_fails(self) -> None:
        used: list[Any] = []

        def fail() -> None:
            used.append(ask())
            raise LookupError

        with pytest.raises(LookupError):
            asyncio.run(in_thread(fail))
        assert used[0].connection is None
