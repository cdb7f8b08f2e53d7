"""The threads of requests: each request is handed to one once, and none is started or shared meanwhile."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.core.exceptions import RequestAborted
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from rensei.core import csv_file, request_threads
from rensei.core.request_threads import Handler
from rensei.orgs.models import Org
from tests.waiting import wait_until

MANY = 20
answered_in: list[threading.Thread] = []
closed_in: list[threading.Thread] = []
# Django sends a longer answer in pieces, and the server waits for its reader before each.
LONG = 4 * Handler.chunk_size
# The connections of the threads that have asked the database, and those threads.
held: set[BaseDatabaseWrapper] = set()
in_thread: list[threading.Thread] = []
entered, goes_on = threading.Event(), threading.Event()


def quick(request: HttpRequest) -> HttpResponse:
    answered_in.append(threading.current_thread())
    return HttpResponse("quick")


def slow(request: HttpRequest) -> HttpResponse:
    answered_in.append(threading.current_thread())
    entered.set()
    assert goes_on.wait(60)
    return HttpResponse("slow")


def long(request: HttpRequest) -> HttpResponse:
    held.add(connections["default"])
    Org.objects.count()
    return HttpResponse(b"-" * LONG)


def file(request: HttpRequest) -> StreamingHttpResponse:
    held.add(connections["default"])
    Org.objects.count()
    return csv_file.answer(request, parts(), filename="orgs.csv")


def parts() -> Iterator[str]:
    for number in range(MANY):
        held.add(connections["default"])
        in_thread.append(threading.current_thread())
        yield f"{number},{Org.objects.count()}\n"


def waits(request: HttpRequest) -> StreamingHttpResponse:
    """An answer that holds no thread, as that of an event stream."""

    async def pieces() -> AsyncIterator[bytes]:
        request_threads.leave_thread(only_ends=True)
        answered_in.append(threading.current_thread())
        yield b"waits"
        await asyncio.Event().wait()

    response = StreamingHttpResponse(pieces())
    response._resource_closers.append(lambda: closed_in.append(threading.current_thread()))  # type: ignore[attr-defined]
    return response


async def on_the_loop(request: HttpRequest) -> HttpResponse:
    answered_in.append(threading.current_thread())
    return HttpResponse("on the loop")


for view in (quick, slow, long, file, waits, on_the_loop):
    view.login_required = False  # type: ignore[attr-defined]
urlpatterns = [path(view.__name__, view) for view in (quick, slow, long, file, waits, on_the_loop)]


@pytest.fixture(autouse=True)
def _views(settings: Any) -> None:
    settings.ROOT_URLCONF = __name__
    answered_in.clear()
    closed_in.clear()
    held.clear()
    in_thread.clear()
    entered.clear()
    goes_on.clear()
    while request_threads._resting:
        request_threads._resting.pop().shutdown()


async def _at_once() -> None:
    """Take a piece of an answer."""


async def ask(
    application: Handler,
    address: str,
    *,
    leaves: threading.Event | asyncio.Event | None = None,
    takes: Callable[[], Awaitable[None]] = _at_once,
) -> bytes:
    """Ask for an address, take each piece of the answer, and leave when it is time, without the answer."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": address,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    asked, sent = [], b""

    async def receive() -> dict[str, Any]:
        if asked:
            if leaves is None:
                await asyncio.Event().wait()
            elif isinstance(leaves, asyncio.Event):
                await leaves.wait()
            else:
                await asyncio.to_thread(leaves.wait, 60)
            return {"type": "http.disconnect"}
        asked.append(True)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal sent
        await takes()
        sent += message.get("body", b"")

    await application(scope, receive, send)
    return sent


class TestARequest:
    def test_is_handed_to_its_thread_three_times(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """For the signal of its start, for all of its middleware and its view, and for the end of its answer."""
        handed = []
        run_in_executor = asyncio.BaseEventLoop.run_in_executor

        def counted(*args: Any) -> Any:
            handed.append(args)
            return run_in_executor(*args)

        monkeypatch.setattr(asyncio.BaseEventLoop, "run_in_executor", counted)

        assert asyncio.run(ask(Handler(), "/quick")) == b"quick"
        assert len(handed) == 3

    def test_that_follows_others_has_no_thread_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        started = []

        class Counted(request_threads._Thread):
            def __init__(self) -> None:
                started.append(self)
                super().__init__()

        def rests() -> bool:
            return any(answered_in[-1] in each._threads for each in list(request_threads._resting))

        async def ask_one_after_another() -> None:
            application = Handler()
            for _ in range(MANY):
                await ask(application, "/quick")
                await asyncio.to_thread(wait_until, rests)

        monkeypatch.setattr(request_threads, "_Thread", Counted)
        asyncio.run(ask_one_after_another())

        assert len(answered_in) == MANY
        # None where the thread of an earlier test has come to rest meanwhile.
        assert len(started) <= 1

    def test_has_its_thread_for_itself_though_a_client_that_left_has_one_still(self) -> None:
        async def leave_and_ask() -> list[bytes]:
            application = Handler()
            leaving = asyncio.create_task(ask(application, "/slow", leaves=entered))
            await asyncio.to_thread(entered.wait, 60)
            others = [await ask(application, "/quick") for _ in range(MANY)]
            goes_on.set()
            await leaving
            return others

        assert asyncio.run(leave_and_ask()) == [b"quick"] * MANY
        assert answered_in[0] not in answered_in[1:]

    def test_may_have_a_view_that_runs_on_the_event_loop(self) -> None:
        assert asyncio.run(ask(Handler(), "/on_the_loop")) == b"on the loop"
        assert answered_in == [threading.main_thread()]


class TestManyClientsThatLeave:
    async def _leave(self, application: Handler, many: int) -> int:
        """Let many clients leave at once, and count the most that a turn of the event loop is told of."""
        leaves, turns = asyncio.Event(), 0
        ended: Counter[int] = Counter()

        async def receive() -> dict[str, Any]:
            await leaves.wait()
            return {"type": "http.disconnect"}

        async def listen() -> None:
            with suppress(RequestAborted):
                await application.listen_for_disconnect(receive)
            ended[turns] += 1

        tasks = [asyncio.create_task(listen()) for _ in range(many)]
        await asyncio.sleep(0)
        leaves.set()
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            turns += 1
        return max(ended.values())

    def test_are_taken_leave_of_one_in_each_turn_of_the_event_loop(self) -> None:
        assert asyncio.run(self._leave(Handler(), 100)) == 1

    def test_share_one_thread_for_the_end_of_answers_that_hold_none(self) -> None:
        application = Handler()

        async def leave() -> None:
            leaves = asyncio.Event()
            waiting = [asyncio.create_task(ask(application, "/waits", leaves=leaves)) for _ in range(MANY)]
            await asyncio.to_thread(wait_until, lambda: len(answered_in) == MANY)
            leaves.set()
            await asyncio.gather(*waiting)

        asyncio.run(leave())

        assert len(closed_in) == MANY
        assert len(set(closed_in)) == 1


@pytest.mark.django_db(transaction=True)
class TestAnAnswerThatIsNotRead:
    @pytest.mark.parametrize("address", ["/long", "/file"])
    def test_holds_no_connection_to_the_database(self, address: str) -> None:
        held_while_sent = []

        async def look() -> None:
            held_while_sent.append(sum(each.connection is not None for each in held))

        sent = asyncio.run(ask(Handler(), address, takes=look))

        assert len(sent) >= (LONG if address == "/long" else MANY)
        assert held
        assert len(held_while_sent) >= 4
        assert not any(held_while_sent)

    def test_holds_no_thread_between_the_pieces_of_a_file(self) -> None:
        free_while_sent = []

        def is_free(thread: threading.Thread) -> bool:
            return not thread.is_alive() or any(thread in each._threads for each in request_threads._resting)

        async def look() -> None:
            if in_thread:
                await asyncio.to_thread(wait_until, lambda: all(map(is_free, in_thread)))
                free_while_sent.append(True)

        asyncio.run(ask(Handler(), "/file", takes=look))

        assert len(free_while_sent) >= MANY


class TestThreads:
    def test_that_are_many_end_but_for_some(self) -> None:
        async def ask_at_once() -> None:
            application = Handler()
            tasks = [asyncio.create_task(ask(application, "/slow")) for _ in range(2 * request_threads.KEPT)]
            await asyncio.to_thread(wait_until, lambda: len(answered_in) == len(tasks))
            goes_on.set()
            await asyncio.gather(*tasks)

        asyncio.run(ask_at_once())

        assert len(set(answered_in)) == 2 * request_threads.KEPT
        wait_until(lambda: sum(thread.is_alive() for thread in answered_in) <= request_threads.KEPT)
        assert len(request_threads._resting) <= request_threads.KEPT
