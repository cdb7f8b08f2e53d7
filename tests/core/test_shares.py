"""What each organization may hold of what a process has."""

import io
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from rensei.core import api
from rensei.core.api import JSONBodyParser
from rensei.core.shares import ByteShares


def filled(shares: ByteShares, org: str) -> int:
    """Take as much as there is for an organization, and return it."""
    while shares.take(org, 1, most=256, of_all=1024):
        pass
    return shares.held[org]


class TestByteShares:
    def test_leave_a_part_for_each_further_organization(self) -> None:
        shares = ByteShares()

        held = [filled(shares, f"org {number}") for number in range(10)]

        assert held[0] == 256
        assert held[-1] >= 10
        assert shares.take("one more", 5, most=256, of_all=1024)

    def test_are_free_again(self) -> None:
        shares = ByteShares()
        shares.take("acme", 200, most=256, of_all=1024)
        shares.leave("acme", 200)

        assert (shares.total, dict(shares.held)) == (0, {})


class TestRestBodies:
    @pytest.mark.parametrize(
        "body", [b'"' + b"x" * 100_000 + b'"', b"[" + b"{}," * 5_000 + b"{}]"], ids=["long", "many"]
    )
    def test_that_are_large_are_read_two_at_a_time_and_one_of_each_organization(
        self, monkeypatch: pytest.MonkeyPatch, body: bytes
    ) -> None:
        guard, may_end, two_are_read = threading.Lock(), threading.Event(), threading.Event()
        reading: list[str] = []
        most: list[int] = []

        def read_object(given: bytes) -> None:
            org = threading.current_thread().name
            with guard:
                assert org not in reading
                reading.append(org)
                most.append(len(reading))
                if len(reading) == 2:
                    two_are_read.set()
            may_end.wait(20)
            with guard:
                reading.remove(org)

        def read(org: str) -> None:
            context = {"request": SimpleNamespace(auth=SimpleNamespace(org=SimpleNamespace(pk=org)))}
            JSONBodyParser().parse(io.BytesIO(body), parser_context=context)

        monkeypatch.setattr(api, "read_object", read_object)
        monkeypatch.setattr(api, "check_apart", lambda given, is_stored: None)
        monkeypatch.setattr(api, "leave_database", lambda: None)
        threads = [threading.Thread(target=read, args=[org], name=org) for org in ["a", "a", "a", "b", "c"]]
        for thread in threads:
            thread.start()
        assert two_are_read.wait(20)
        may_end.set()
        for thread in threads:
            thread.join(timeout=20)

        assert (max(most), len(most)) == (2, 5)

    def test_that_are_small_wait_for_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(api, "large_bodies", None)

        found: Any = JSONBodyParser().parse(io.BytesIO(b'{"a": 1}'))

        assert found == {"a": 1}
