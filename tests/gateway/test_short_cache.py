"""A cached value is kept while nothing changes, and is behind the database for less than a second."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError

from rensei.gateway import short_cache
from rensei.gateway.short_cache import ChangeWatch, ShortLivedCache
from tests.gateway.test_dropped_keys import until


class Source:
    """What is cached: a number that changes, and a database that may be away."""

    def __init__(self) -> None:
        self.number, self.loads, self.checks = 0, 0, 0
        self.is_away = False
        self._seen: int | None = None

    def load(self) -> int:
        self.loads += 1
        return self.number

    def has_changed(self) -> bool:
        self.checks += 1
        if self.is_away:
            raise OperationalError("away")
        is_changed, self._seen = self._seen != self.number, self.number
        return is_changed


@pytest.fixture(autouse=True)
def _ten_times_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIFETIME_SECONDS", "RENEW_AFTER_SECONDS", "CHECK_SECONDS"):
        monkeypatch.setattr(short_cache, name, getattr(short_cache, name) / 10)


def play(story: Callable[[ShortLivedCache[Any], Source], Awaitable[Any]], **options: Any) -> Any:
    async def with_threads() -> Any:
        source = Source()
        with ThreadPoolExecutor(4) as loaders, ThreadPoolExecutor(1) as watcher:
            watch = ChangeWatch(source.has_changed, watcher)
            try:
                return await story(ShortLivedCache(loaders, watch, **{"is_kept": lambda _: True, **options}), source)
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

        assert play(story) == ({0}, 0)

    def test_is_loaded_again_when_something_changes(self) -> None:
        async def story(cache: ShortLivedCache[Any], source: Source) -> tuple[int, int]:
            await use(cache, source, checks=4)
            source.number = 1
            await until(lambda: source._seen == 1)
            given = await use(cache, source, checks=5)
            return given[-1], source.loads

        value, loads = play(story)

        assert value == 1
        assert loads <= 4

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

        assert play(story) == [0, 1]

    def test_expires_when_the_database_is_away(self) -> None:
        async def story(cache: ShortLivedCache[Any], source: Source) -> int:
            await use(cache, source, checks=4)
            source.is_away = True
            await until(lambda: not cache.holds_values)
            return source.loads

        assert play(story) >= 1

    def test_is_dropped_when_it_is_not_used(self) -> None:
        async def story(cache: ShortLivedCache[Any], source: Source) -> bool:
            await use(cache, source, checks=4)
            await cache.get("unused", source.load)
            await use(cache, source, checks=20)
            return "unused" in cache._entries

        assert not play(story)

    def test_is_kept_for_a_bounded_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(short_cache, "KEPT_SECONDS", 0.2)

        async def story(cache: ShortLivedCache[Any], source: Source) -> int:
            await use(cache, source, checks=4)
            loads = source.loads
            await use(cache, source, checks=30)
            return source.loads - loads

        assert play(story) >= 3

    def test_is_renewed_before_it_expires(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(short_cache, "RENEW_KEPT_AFTER_SECONDS", 0.2)

        async def story(cache: ShortLivedCache[Any], source: Source) -> int:
            await use(cache, source, checks=4)
            loads = source.loads
            await use(cache, source, checks=30)
            return source.loads - loads

        assert play(story) >= 3

    def test_that_depends_on_more_is_loaded_again(self) -> None:
        async def story(cache: ShortLivedCache[Any], source: Source) -> int:
            await use(cache, source, checks=4)
            loads = source.loads
            await use(cache, source, checks=20)
            return source.loads - loads

        assert play(story, is_kept=lambda _: False) >= 3

    def test_is_watched_only_while_it_is_there(self) -> None:
        async def story(cache: ShortLivedCache[Any], source: Source) -> bool:
            await cache.get("a", source.load)
            await until(lambda: not cache.holds_values)
            task = cache._watch._task  # type: ignore[union-attr]
            await until(lambda: task is not None and task.done())
            await cache.get("a", source.load)
            checks = source.checks
            await until(lambda: source.checks > checks)
            return True

        assert play(story)
