"""The full garbage collection stops every thread, so it is done in a moment without calls."""

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

import pytest

from rensei.gateway import app
from rensei.gateway.app import COLLECT_SECONDS, Gateway


@pytest.mark.parametrize(
    ("seconds_since", "calls", "is_collected"),
    [
        (COLLECT_SECONDS - 1, 0, False),
        (COLLECT_SECONDS + 1, 0, True),
        (COLLECT_SECONDS + 1, 1, False),
        (2 * COLLECT_SECONDS + 1, 1, True),
    ],
)
def test_the_full_collection_waits_for_a_moment_without_calls(
    monkeypatch: pytest.MonkeyPatch, seconds_since: float, calls: int, is_collected: bool
) -> None:
    collected: list[bool] = []
    monkeypatch.setattr(app, "gc", SimpleNamespace(collect=lambda: collected.append(True)))
    looked_again: list[float] = []
    gateway: Any = SimpleNamespace(_live=dict.fromkeys(range(calls)), collect_garbage=looked_again.append)

    async def look() -> float:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(app, "COLLECT_LOOK_SECONDS", 0.0)
        last = loop.time() - seconds_since
        Gateway.collect_garbage(gateway, last)
        await asyncio.sleep(0.01)
        return last

    last = asyncio.run(look())

    assert bool(collected) is is_collected
    assert len(looked_again) == 1
    assert (looked_again[0] > last) is is_collected
    assert gc.isenabled()
