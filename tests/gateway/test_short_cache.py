"""A cached value is kept while nothing changes, and is behind the database for less than a second."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError

from rensei.dispatch.decision_changes import EVERY_ORG
from rensei.gateway import short_cache
from rensei.gateway.short_cache import ChangeWatch, ShortLivedCache
from tests.gateway.test_dropped_keys import until

# While nothing changes, a value is loaded so often at most, where the machine holds a check up. It is otherwise loaded
# about once in two checks.
FEW = 3


class Source:
    """What is cached: a number that changes, and a database that may be away."""

    def __init__(self) -> None:
        self.number, self.loads, self.checks = 0, 0, 0
        self.changed_org = "org_acme"
        self.fault: Exception | None = None
        self._seen: int | None = None

    def load(self) -> int:
        self.loads += 1
        return self.number

    def changed_orgs(self) -> set[str]:
        self.checks += 1
        if self.fault is not None:
            raise self.fault
        is_changed, is_first = self._seen != self.number, self._seen is None
        self._seen = self.number
        return {EVERY_ORG} if is_first else {self.changed_org} if is_changed else set()


@pytest.fixture(autouse=True)
def _three_times_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIFETIME_SECONDS", "RENEW_AFTER_SECONDS", "CHECK_SECONDS"):
        monkeypatch.setattr(short_cache, name, getattr(short_cache, name) / 3)


def play(story: Callable[[ShortLivedCache[Any], Source], Awaitable[Any]], **options: Any) -> Any:
    async def with_threads() -> Any:
        source = Source()
        with ThreadPoolExecutor(4) as loaders, ThreadPoolExecutor(1) as watcher:
            watch = ChangeWatch(source.changed_orgs, watcher)
            try:
                return await story(
                    ShortLivedCache(loaders, watch, **{"org_of": lambda *_: "org_acme", **options}), source
                )
            finally:
                watch.stop()

    return asyncio.run(with_threads())


async def use(cache: ShortLivedCache[Any], source: Source, *, checks: int) -> list[int]:
    """Use the value until the watch has looked so often."""
    given = []
    at_first = source.checks
    while source.checks < at_first + checks:
        given.append(await cache.get("a", source.load))
        await asyncio.sleep(0.001)
    return given


class TestAValue:
    def test_is_loaded_once_while_nothing_changes(self) -> None:
        async def story(cache: ShortLivedCache[Any], source: Source) -> tuple[set[int], int]:
            # The first check finds a change by definition, and ends what was loaded before it.
            await use(cache, source, checks=4)
            loads = source.loads
            return set(await use(cache, source, checks=20)), source.loads - loads

        values, loads = play(story)

        assert values == {0}
        assert loads <= FEW

    def test_is_loaded_again_when_something_changes(self) -> None:
        async def story(cache: ShortLivedCache[Any], source: Source) -> tuple[int, int]:
            await use(cache, source, checks=4)
            source.number = 1
            await until(lambda: source._seen == 1)
            given = await use(cache, source, checks=5)
            return given[-1], source.loads

        value, loads = play(story)

        assert value == 1
        assert loads <= 2 * FEW

    def test_is_not_kept_if_its_load_began_before_the_change_was_noticed(self) -> None:
        is_loading, may_go_on = threading.Event(), threading.Event()

        async def story(cache: ShortLivedCache[Any], source: Source) -> list[int]:
            await use(cache, source, checks=4)

            def slowly() -> int:
                found = source.load()
                is_loading.set()
                may_go_on.wait()
                return found

            load = asyncio.ensure_future(cache.get("slow", slowly))
            await asyncio.to_thread(is_loading.wait)
            source.number = 1
            await until(lambda: source._seen == 1)
            may_go_on.set()
            first = await load
            await until(lambda: "slow" not in cache._entries)
            return [first, await cache.get("slow", source.load)]

        assert play(story, holds_secrets=True) == [0, 1]

    def test_is_kept_when_something_changes_for_others(self) -> None:
        async def story(cache: ShortLivedCache[Any], source: Source) -> int:
            await use(cache, source, checks=4)
            loads, source.number, source.changed_org = source.loads, 1, "org_other"
            await use(cache, source, checks=20)
            return source.loads - loads

        assert play(story) <= FEW

    @pytest.mark.parametrize("fault", [OperationalError("away"), ValueError("a bug")])
    def test_expires_when_changes_are_unknown(self, fault: Exception) -> None:
        async def story(cache: ShortLivedCache[Any], source: Source) -> int:
            await use(cache, source, checks=4)
            source.fault = fault
            loads = source.loads
            await use(cache, source, checks=12)
            failed = source.loads - loads
            source.fault = None
            await use(cache, source, checks=4)
            loads = source.loads
            await use(cache, source, checks=10)
            assert source.loads - loads <= FEW
            return failed

        assert play(story) > FEW

    @pytest.mark.parametrize("holds_secrets", [True, False])
    def test_is_kept_without_use_unless_it_holds_secrets(self, holds_secrets: bool) -> None:
        async def story(cache: ShortLivedCache[Any], source: Source) -> bool:
            await use(cache, source, checks=4)
            await cache.get("unused", source.load)
            await use(cache, source, checks=20)
            return cache.kept("unused") is not None

        assert play(story, holds_secrets=holds_secrets) is not holds_secrets

    def test_that_was_loaded_first_makes_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(short_cache, "ENTRIES_MAX", 3)

        async def story(cache: ShortLivedCache[Any], source: Source) -> list[Any]:
            for number in range(5):
                await cache.get(number, source.load)
            return list(cache._entries)

        assert play(story) == [2, 3, 4]

    def test_makes_no_room_for_those_of_an_organization_that_has_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(short_cache, "ENTRIES_MAX", 10)

        async def story(cache: ShortLivedCache[Any], source: Source) -> list[Any]:
            for key in [("org_other", 0), *(("org_acme", number) for number in range(30)), ("org_new", 0)]:
                await cache.get(key, source.load)
            return list(cache._entries)

        kept = play(story, org_of=lambda key, _: key[0])

        assert kept == [("org_other", 0), *(("org_acme", number) for number in range(22, 30)), ("org_new", 0)]

    @pytest.mark.parametrize("keys", [1, 100], ids=["renewed", "made up"])
    def test_that_is_dropped_is_held_by_nothing(self, monkeypatch: pytest.MonkeyPatch, keys: int) -> None:
        monkeypatch.setattr(short_cache, "ENTRIES_MAX", 10)

        class Loaded:
            """What a route is: it holds a decision, a profile and prices."""

        async def story(cache: ShortLivedCache[Any], source: Source) -> int:
            alive: weakref.WeakSet[Loaded] = weakref.WeakSet()

            def load() -> Loaded:
                alive.add(loaded := Loaded())
                return loaded

            for number in range(100):
                key = number % keys
                await asyncio.shield(cache._start(key, load))
            gc.collect()
            return len(alive)

        assert play(story) <= 10

    def test_is_kept_for_a_bounded_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(short_cache, "KEPT_SECONDS", 0.2)

        async def story(cache: ShortLivedCache[Any], source: Source) -> int:
            await use(cache, source, checks=4)
            loads = source.loads
            await use(cache, source, checks=30)
            return source.loads - loads

        assert play(story) > FEW

    def test_is_renewed_before_it_expires(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(short_cache, "RENEW_KEPT_AFTER_SECONDS", 0.2)

        async def story(cache: ShortLivedCache[Any], source: Source) -> int:
            await use(cache, source, checks=4)
            loads = source.loads
            await use(cache, source, checks=30)
            return source.loads - loads

        assert play(story) > FEW

    def test_that_depends_on_more_is_loaded_again(self) -> None:
        async def story(cache: ShortLivedCache[Any], source: Source) -> int:
            await use(cache, source, checks=4)
            loads = source.loads
            await use(cache, source, checks=20)
            return source.loads - loads

        assert play(story, org_of=lambda *_: None) > FEW

    def test_is_watched_only_while_it_is_there(self) -> None:
        async def story(cache: ShortLivedCache[Any], source: Source) -> bool:
            await cache.get("a", source.load)
            cache._drop("a")
            task = cache._watch._task  # type: ignore[union-attr]
            await until(lambda: task is not None and task.done())
            await cache.get("a", source.load)
            checks = source.checks
            await until(lambda: source.checks > checks)
            return True

        assert play(story)

    def test_is_loaded_in_turn(self) -> None:
        guard = threading.Lock()
        at_once: list[int] = []
        under_way = 0

        def load() -> int:
            nonlocal under_way
            with guard:
                under_way += 1
                at_once.append(under_way)
            time.sleep(0.01)
            with guard:
                under_way -= 1
            return 1

        async def story(cache: ShortLivedCache[Any], source: Source) -> list[Any]:
            turn = asyncio.Lock()
            keys = [*range(5), *range(5)]
            return await asyncio.gather(*(cache.get(key, load, turn=turn) for key in keys))

        assert play(story) == [1] * 10
        assert at_once == [1] * 5
