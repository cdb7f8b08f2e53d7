"""Names of organizations whose name servers do not answer: what they occupy, and who waits for them."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from integrations.outbound import http as outbound
from integrations.outbound.destinations import Destination, parse_url
from integrations.providers.anthropic import resolving
from integrations.providers.anthropic.resolving import CheckedResolver
from rensei.gateway.threads import in_thread
from tests.waiting import wait_until

# More than the threads of an event loop.
SLOW = 24
ADDRESS = "192.0.2.7"


def destination(org: str) -> Destination:
    return parse_url(f"https://{org}.example", characters_max=300, org_slug=org)


class Names:
    """Stands for the system's resolver, which no test can make slow: names of slow organizations wait for `answer`."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked: list[str] = []

    def look_up(self, found: Destination) -> list[str]:
        self.asked.append(found.host)
        if found.host.startswith("slow"):
            assert self.answer.wait(60)
        return [ADDRESS]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(outbound, "checked_addresses", made.look_up)
    yield made
    made.answer.set()
    wait_until(lambda: resolving._threads._work_queue.empty())


async def resolve(org: str) -> str:
    resolver = CheckedResolver(destination(org), org=org)
    [found] = await resolver.resolve(f"{org}.example", 443)
    return found["host"]


class TestSlowNames:
    def test_stop_neither_the_work_of_others_nor_their_names(self, names: Names) -> None:
        async def attack() -> tuple[str, str]:
            slow = [asyncio.create_task(resolve(f"slow{number}")) for number in range(SLOW)]
            with ThreadPoolExecutor(1) as thread:
                all_ask = partial(wait_until, lambda: len(names.asked) == SLOW)
                await asyncio.get_running_loop().run_in_executor(thread, all_ask)
            found = await resolve("quick"), await in_thread(lambda: "done")
            names.answer.set()
            await asyncio.gather(*slow)
            return found

        assert asyncio.run(attack()) == (ADDRESS, "done")

    def test_of_one_organization_occupy_one_thread_after_their_callers_left(
        self, names: Names, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(resolving, "RESOLVE_SECONDS", 0.05)

        async def attack() -> list[BaseException | str]:
            found = await asyncio.gather(*(resolve("slow") for _ in range(SLOW)), return_exceptions=True)
            names.answer.set()
            while resolving._under_way:
                await asyncio.wait(list(resolving._under_way.values()))
            return found

        assert all(isinstance(one, TimeoutError) for one in asyncio.run(attack()))
        assert names.asked == ["slow.example"]
