"""SQLite says that the disk is full: where it may not grow any more, it says the same, and at the same moments."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection
from django.db.backends.signals import connection_created

from rensei.dispatch.models import IdempotencyKey, Run, RunInput

pytestmark = [pytest.mark.sqlite, pytest.mark.django_db(transaction=True)]


@contextmanager
def full_disk() -> Iterator[None]:
    """https://www.sqlite.org/pragma.html#pragma_max_page_count"""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")

    def limit(pages: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"PRAGMA max_page_count = {pages}")

    def limit_new_connection(**_: Any) -> None:
        limit(1)

    # The limit belongs to a connection, and a refused write may close it.
    connection_created.connect(limit_new_connection)
    try:
        limit(1)
        yield
    finally:
        connection_created.disconnect(limit_new_connection)
        limit(1073741823)


class TestAFullDisk:
    def test_refuses_a_dispatch_whole_and_takes_it_when_there_is_room_again(
        self, ada: Any, api_as: Any, connect: Any, make_profile: Callable[..., Any], work: Any, simulator: Any
    ) -> None:
        connect()
        api = api_as(ada)
        wanted = {"profileId": make_profile().public_id, "input": "Hello. " * 10_000}
        api.credentials(**api._credentials, HTTP_IDEMPOTENCY_KEY="once")
        assert api.get("/api/v1/me").status_code == 200
        calls = len(simulator.requests())

        with full_disk():
            refused = api.post("/api/v1/runs", wanted)

        assert (refused.status_code, refused.json()["code"]) == (503, "DATABASE_UNAVAILABLE")
        assert refused.headers["Retry-After"] == "5"
        assert not Run.objects.exists()
        assert not RunInput.objects.exists()
        assert not IdempotencyKey.objects.exists()
        assert len(simulator.requests()) == calls

        assert api.post("/api/v1/runs", wanted).status_code == 202
        (run,) = work()
        assert run.state == Run.State.SUCCEEDED
