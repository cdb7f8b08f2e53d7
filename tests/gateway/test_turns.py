"""What a body or an answer makes the gateway do is counted by its values and lines, and much of it waits in turn."""

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from aiohttp import StreamReader

from integrations.providers.anthropic import relay
from integrations.providers.anthropic.events import EventReader
from rensei.core.json_body import work_of
from rensei.dispatch.settlement import outcomes
from rensei.gateway.app import _parsed
from rensei.gateway.call import Caller, GatewayCall
from rensei.gateway.threads import BodyThreads
from tests.integrations.anthropic.test_growth import lines

TEXT = b'{"model": "m", "messages": [{"role": "user", "content": "%s"}]}'
OBJECTS = b'{"model": "m", "messages": [], "tools": [%s{}]}'
ACME, OTHER = "org_acme", "org_other"


def text_of(size: int) -> bytes:
    return TEXT % (b"word " * (size // 5))


def objects_of(size: int) -> bytes:
    return OBJECTS % (b"{}," * (size // 3))


@pytest.fixture
def threads() -> Iterator[BodyThreads]:
    made = BodyThreads()
    yield made
    made.close()


class TestABody:
    def test_is_read_by_the_event_loop_if_it_is_small_and_holds_few_values(self, threads: BodyThreads) -> None:
        assert asyncio.run(self.thread_of(threads, text_of(60_000))) == threading.current_thread().name

    def test_of_many_values_is_read_in_a_thread(self, threads: BodyThreads) -> None:
        assert asyncio.run(self.thread_of(threads, objects_of(60_000))).startswith("gateway-body")

    def test_makes_the_event_loop_do_no_more_if_it_holds_twice_as_many_values(self, threads: BodyThreads) -> None:
        def read(size: int) -> int:
            raw = objects_of(size)
            work = threads.run(partial(_parsed, raw), size=work_of(raw), org_id=ACME)
            return lines(partial(asyncio.run, work), of=".py")

        # Asyncio takes some hundred lines, more or less. The body has 10,000 more objects.
        assert read(60_000) - read(30_000) < 1_000

    async def thread_of(self, threads: BodyThreads, raw: bytes) -> str:
        return await threads.run(lambda: threading.current_thread().name, size=work_of(raw), org_id=ACME)


class TestATurn:
    def test_ends_when_the_work_of_a_cancelled_call_has_ended(self, threads: BodyThreads) -> None:
        async def play() -> tuple[bool, str]:
            begun, may_end = threading.Event(), threading.Event()

            def work() -> None:
                begun.set()
                may_end.wait(20)

            first = asyncio.create_task(threads.run(work, size=10**6, org_id=ACME))
            await asyncio.to_thread(begun.wait, 20)
            first.cancel()
            second = asyncio.create_task(threads.run(lambda: "second", size=10**6, org_id=ACME))
            # Work of another organization passes meanwhile.
            await threads.run(lambda: None, size=10**6, org_id=OTHER)
            waited = not second.done()
            may_end.set()
            return waited, await second

        assert asyncio.run(play()) == (True, "second")


class TestAnAnswer:
    """Of an address that an organization has chosen."""

    @pytest.mark.parametrize(
        "piece",
        [b"data:{}\n\n", b": x\n", b"data:x\r", b'data:{"usage":{"iterations":[' + b"{}," * 3_000],
        ids=["events", "comments", "lines", "values"],
    )
    def test_of_many_events_is_read_in_a_thread(self, threads: BodyThreads, piece: bytes) -> None:
        assert self.readers(threads, piece * (100_000 // len(piece))) == {"gateway-body"}

    def test_of_a_few_events_is_read_by_the_event_loop(self, threads: BodyThreads) -> None:
        assert self.readers(threads, b'data: {"type": "ping"}\n\n' * 20) == {"MainThread"}

    def test_that_is_an_event_of_many_pieces_is_parsed_in_a_thread(self, threads: BodyThreads) -> None:
        pieces = [b'data: {"type": "', *[b"x" * 1000] * 100, b'"}\n', b"\n"]

        assert "gateway-body" in self.readers(threads, *pieces)

    def test_that_is_one_large_message_is_parsed_in_a_thread(self, threads: BodyThreads) -> None:
        whole = b'{"type": "message", "content": [%s{}]}' % (b"{}," * 10_000)

        assert self.readers(threads, whole, content_type="application/json") == {"gateway-body"}

    def test_that_is_compressed_is_decompressed_in_a_thread(self, threads: BodyThreads) -> None:
        assert self.readers(threads, b"not gzip", encoding="gzip") == {"gateway-body"}

    def readers(
        self, threads: BodyThreads, *pieces: bytes, content_type: str = "text/event-stream", encoding: str = ""
    ) -> set[str]:
        """Pass an answer on, and name the threads that read its pieces."""
        seen: list[str] = []
        take = relay.Tap.take

        def noted(tap: relay.Tap, chunk: bytes) -> None:
            seen.append(threading.current_thread().name.partition("_")[0])
            take(tap, chunk)

        async def play() -> None:
            content = StreamReader(Mock(_reading_paused=False), limit=2**20)
            answer = Mock(content_type=content_type, status=200, raw_headers=[], content=content)
            answer.headers = {"content-encoding": encoding}
            nothing = dict.fromkeys(
                ("attempt", "credential", "route", "outgoing", "live", "settle", "named", "hold"), Mock()
            )
            nothing["outgoing"] = Mock(input_tokens_about=1, asked={}, answer_bytes_max=2**20)
            caller = Caller(AsyncMock())
            call = GatewayCall(
                **nothing, run=Mock(org_id=ACME, id="run_1", auth_mode="byok"), caller=caller, threads=threads
            )
            call._fail = AsyncMock(return_value=outcomes.refusal_error(outcomes.RunTimeout()))  # type: ignore[method-assign]
            passing = asyncio.create_task(call._pass_on(answer))
            for piece in pieces:
                content.feed_data(piece)
                await asyncio.sleep(0)
            content.feed_eof()
            await passing

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(relay.Tap, "take", noted)
            asyncio.run(play())
        return set(seen)


class TestEvents:
    def test_are_read_with_the_same_work_however_many_empty_lines_come_between_them(self) -> None:
        def read(empty: int) -> int:
            stream = (b'data: {"type": "ping"}\n' + b"\n" * empty) * 3
            found: list[Any] = []
            count = lines(lambda: found.extend(EventReader().feed(stream)), of="events.py")
            assert len(found) == 3
            return count

        assert read(10_000) == read(20_000)


class TestAnEndlessAnswer:
    @pytest.mark.parametrize("streams", [True, False])
    def test_is_refused_although_it_is_not_compressed(self, streams: bool) -> None:
        tap = relay.Tap(input_tokens_about=1, streams=streams, bytes_max=10_000)
        tap.take(b"data: {}\n\n" * 900)

        with pytest.raises(relay.outbound.AnswerRefused):
            tap.take(b"data: {}\n\n" * 900)
