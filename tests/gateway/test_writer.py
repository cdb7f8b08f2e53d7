"""The thread that writes the plans of many calls together."""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from rensei.gateway.writer import GroupWriter

pytestmark = pytest.mark.django_db(transaction=True)


class Written:
    """Records the groups, and lets a write wait until it may end."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.began = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, plans: Sequence[str]) -> list[None]:
        self.groups.append(list(plans))
        self.began.set()
        assert self.may_end.wait(10)
        return [None] * len(plans)


class TestGathering:
    def test_only_a_group_of_several_makes_the_next_one_wait_for_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waited: list[float] = []
        sleep = time.sleep

        def recorded(seconds: float) -> None:
            waited.append(seconds)
            sleep(seconds)

        monkeypatch.setattr("rensei.gateway.writer.time.sleep", recorded)
        written = Written()

        async def submit() -> None:
            writer: GroupWriter[Any] = GroupWriter("writer", written, gather_under_load_seconds=0.001)
            await writer.submit("alone")
            await writer.submit("alone again")
            assert waited == []
            written.may_end.clear()
            written.began.clear()
            first = writer.submit("first")
            await asyncio.get_running_loop().run_in_executor(None, written.began.wait, 10)
            others = [writer.submit(name) for name in ("second", "third")]
            written.may_end.set()
            await asyncio.gather(first, *others)
            assert waited == []
            await writer.submit("after several")
            assert waited == [0.001]
            await writer.submit("after one")
            assert waited == [0.001]
            await writer.close()

        asyncio.run(submit())
        assert written.groups == [
            ["alone"], ["alone again"], ["first"], ["second", "third"], ["after several"], ["after one"],
        ]  # fmt: skip
