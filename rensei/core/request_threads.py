"""
The threads in which Django answers: one for each request, reused for the next, and left only when it is done.

The event loop that dispatches requests also forwards the calls of the gateway, so it must wait for no thread.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, async_to_sync, iscoroutinefunction, sync_to_async
from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import ASGIHandler
from django.db import connection
from django.http import HttpRequest, HttpResponseBase

from rensei.core.computing import in_turn, outside_of_turn
from rensei.core.limits import limit
from rensei.core.request_places import leave_address
from rensei.core.transactions import leave_database

# More simultaneous requests start more threads, and the event loop waits until such a thread has started: on a busy
# machine many milliseconds, so enough of them are kept for all tests of keys that end together.
KEPT = limit(
    128,
    "threads",
    what="Threads that answer requests and are kept while none uses them, each process; a request holds one",
    told="the caller: none waits for a thread, and one more is started",
)

_resting: deque["_Thread"] = deque()
# Ends the answers that hold no thread: a thousand event streams may be closed at once.
_end = ThreadPoolExecutor(max_workers=1, thread_name_prefix="request-end")


class _Thread(ThreadPoolExecutor):
    """One thread, for one request at a time."""

    def __init__(self) -> None:
        super().__init__(max_workers=1, thread_name_prefix="request")

    def rest(self) -> None:
        """Take the next request when all work of this one is done, even if its client has left before."""
        self.submit(self._rest)

    def _rest(self) -> None:
        if len(_resting) < KEPT:
            _resting.append(self)
        else:
            self.shutdown(wait=False)


def _take() -> _Thread:
    try:
        return _resting.pop()
    except IndexError:
        return _Thread()


def leave_thread(*, only_ends: bool = False) -> None:
    """
    Release this request's thread for others, and its place among the requests under way.

    :param only_ends: all that is left for a thread is the end of the answer, for which all such requests share one.
        Further work of any other request gets another thread.
    """
    leave_address()
    context = SyncToAsync.thread_sensitive_context.get(None)
    if context is None:
        return
    thread = SyncToAsync.context_to_thread_executor.pop(context, None)
    if only_ends:
        SyncToAsync.context_to_thread_executor[context] = _end
    if isinstance(thread, _Thread):
        thread.rest()


class Handler(ASGIHandler):
    """
    Runs the middleware and the view of a request in one step.

    Django's own handler returns to the event loop around most of them, some twenty times for a request, and starts
    and ends a thread besides. An asynchronous view still runs on the event loop.
    """

    def __init__(self) -> None:
        super().__init__()
        self._leaving = asyncio.Lock()

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        thread = _take()
        context = ThreadSensitiveContext(executor=thread)
        is_ours = True
        try:
            async with context:
                try:
                    await self.handle(scope, receive, send)
                finally:
                    is_ours = SyncToAsync.context_to_thread_executor.get(context) is thread
        finally:
            if is_ours:
                thread.rest()

    async def listen_for_disconnect(self, receive: Callable[[], Awaitable[Any]]) -> None:
        """
        Wait until the client disconnects, and begin to end one request after the other.

        The event loop forwards the calls of the gateway in each of its turns, which would otherwise take long when a
        thousand clients disconnect together.
        """
        try:
            await super().listen_for_disconnect(receive)
        except RequestAborted:
            async with self._leaving:
                await asyncio.sleep(0)
            raise

    def make_view_atomic(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """
        Have the thread wait for an asynchronous view, which may wait long itself, outside of its turn.

        Django calls this for each view. No view is in a transaction as a whole.
        """
        if not iscoroutinefunction(view):
            return view
        run = async_to_sync(view)

        def wait_for_view(*args: Any, **kwargs: Any) -> Any:
            with outside_of_turn():
                return run(*args, **kwargs)

        return wait_for_view

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase = await sync_to_async(self._answer, thread_sensitive=True)(request)
        return response

    def _answer(self, request: HttpRequest) -> HttpResponseBase:
        """Answer, and release the connection: how long the answer takes to be sent is up to its reader."""
        with in_turn(), connection.execute_wrapper(_wait_for_database):
            response = self.get_response(request)
            leave_database()
        return response


def _wait_for_database(execute: Callable[..., Any], *given: Any) -> Any:
    with outside_of_turn():
        return execute(*given)
