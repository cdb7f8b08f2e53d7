"""
Stops reading a body that is too large or too slow, before it fills the disk or occupies a connection.

Views set the finer limits. The server bounds what precedes a body, and the time between requests.
"""

import asyncio
import gc
import json
import resource
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import HttpRequest
from django.urls import Resolver404, resolve

from rensei.core import request_places
from rensei.core.api import ANONYMOUS_BODY_LIMIT, DEFAULT_BODY_LIMIT, LARGE_BODY_LIMIT, RequestTooLarge
from rensei.core.errors import DATABASE_FAULTS, RateLimited, RenseiError, Said, database_refusal
from rensei.core.ids import new_id
from rensei.core.limits import limit
from rensei.core.middleware import HEADER
from rensei.core.networks import counted_address
from rensei.core.problems import PROBLEM, problem_body, refusal_headers
from rensei.core.proxies import address_of
from rensei.core.shares import ByteShares
from rensei.core.transactions import leave_database

_MIB = 1024 * 1024
BODY_SECONDS = limit(
    30,
    "seconds, and one more for every 4 KiB that have come; no 30 seconds pass without 64 KiB more",
    what="Time in which a request's body comes",
    told="the caller: 408 `REQUEST_TOO_SLOW`, and the connection is closed",
)
BODY_BYTES_PER_SECOND = 4 * 1024
BODY_BYTES_STEP = 64 * 1024
BODIES_OF_ORG = limit(
    256,
    "MiB",
    what="Bodies over 16 KiB of the requests under way to REST and pages, together, each organization and process",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`, and the connection is closed",
)
BODIES = limit(
    1024,
    "MiB",
    what="Bodies over 16 KiB of the requests under way to REST and pages, together, each process; one organization "
    "holds at most half as much as is free",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`, and the connection is closed",
)
HEADER_SECONDS = limit(
    30,
    "seconds",
    what="Time in which the head of a request comes, idle connections included",
    told="the caller: the connection is closed",
)
CONNECTIONS_MAX = limit(
    10_000,
    "connections",
    what="Connections of callers that each process serves at a time",
    told="the caller: it waits until another one has ended",
)
# The options of granian for these limits. It has no such time limit in its HTTP/2 reader, nor while it detects which
# of the two versions a caller uses. By default, it serves 1,024 connections at a time, divided by the number
# of processes: a thousand event streams, or as many silent connections, would block all other callers.
SERVER_OPTIONS = (
    "--http=1",
    f"--http1-header-read-timeout={HEADER_SECONDS * 1000}",
    f"--backpressure={CONNECTIONS_MAX}",
)
# A call through the gateway has a file handle at both ends; the rest are for the database and the libraries.
FILE_HANDLES = 2 * CONNECTIONS_MAX + 1000
# A watchdog and a load balancer ask whether the process lives and is ready, however busy it is.
ALWAYS_ANSWERED = frozenset({"/healthz", "/readyz"})
# Young objects are also collected by their number, which says nothing of the bytes that they hold.
COLLECTED_BYTES = 64 * _MIB
_CREDENTIALS = (b"authorization", b"x-api-key")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]


def take_file_handles() -> None:
    """Raise the limit of file handles to what the connections need, or to what the system allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILE_HANDLES if hard == resource.RLIM_INFINITY else min(FILE_HANDLES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class BodyTooSlow(RenseiError):
    """The body of a request did not arrive in time. Nothing was done, and the same request can be sent again."""

    code = "REQUEST_TOO_SLOW"
    status = 408
    title = "Request too slow"
    message = Said("The body of the request did not arrive in time.", "Send it again over a faster connection.")
    retryable = True


class _Refused(Exception):
    """Aborts the application, which otherwise reads the whole body before it answers."""

    def __init__(self, refusal: RenseiError) -> None:
        super().__init__(refusal)
        self.refusal = refusal


def limit_bodies(application: Application, *, sender_of: Callable[[Scope], str]) -> Application:
    """
    Wrap an ASGI application so that it never receives more bytes than its view takes, announced or not, and no more
    requests at a time than `request_places` has places for.

    Without credentials, or where none are required, the limit is `ANONYMOUS_BODY_LIMIT`. Before more is received,
    credentials are looked up: what all larger bodies take together is limited for each organization, and a caller
    without a login can take no part of it.

    :param sender_of: finds the organization that sends a request, in a thread; it raises a `RenseiError` if there is
        none
    """
    bodies = ByteShares()
    ended_bytes = 0

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        with request_places.of_address(_address(scope)) as take_place:
            await answered(scope, receive, send, take_place)

    async def answered(scope: Scope, receive: Receive, send: Send, take_place: Callable[[], bool]) -> None:
        allowed = _allowed_bytes(scope)
        # Views refuse what is a little too large themselves.
        most = allowed if allowed == ANONYMOUS_BODY_LIMIT else allowed + _MIB
        if _announced(scope) > most:
            await _refuse(send, RequestTooLarge(limit=allowed))
            return
        sender = ""
        received = held = 0

        async def counted() -> Message:
            nonlocal sender, received, held
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise _Refused(RequestTooLarge(limit=allowed))
            if received > ANONYMOUS_BODY_LIMIT:
                sender = sender or await sync_to_async(_known)(sender_of, scope)
                if not bodies.take(sender, received - held, most=BODIES_OF_ORG * _MIB, of_all=BODIES * _MIB):
                    raise _Refused(RateLimited(seconds=1, extra={"retryAfter": 1}))
                held = received
            is_whole = message["type"] == "http.request" and not message.get("more_body")
            if is_whole and scope["path"] not in ALWAYS_ANSWERED and not take_place():
                raise _Refused(RateLimited(seconds=1, extra={"retryAfter": 1}))
            return message

        try:
            await application(scope, counted, send)
        except _Refused as refused:
            await _refuse(send, refused.refusal)
        finally:
            bodies.leave(sender, held)
            collect_after(held)

    def collect_after(held: int) -> None:
        """A request and its view refer to each other, so its body stays in memory until a garbage collection."""
        nonlocal ended_bytes
        ended_bytes += held
        if ended_bytes >= COLLECTED_BYTES:
            ended_bytes = 0
            gc.collect(1)

    return limited


def _known(sender_of: Callable[[Scope], str], scope: Scope) -> str:
    """Find the sender of a body, and hold no connection while the rest of it comes."""
    try:
        return sender_of(scope)
    except RenseiError as refusal:
        raise _Refused(refusal) from None
    except DATABASE_FAULTS as fault:
        raise _Refused(database_refusal(fault)) from None
    finally:
        leave_database()


def pace_bodies(application: Application) -> Application:
    """
    Wrap an ASGI application so that it waits for a body no longer than `BODY_SECONDS` plus a time for its bytes.

    Of a large body, the time for its bytes is hours, so no `BODY_SECONDS` may pass without `BODY_BYTES_STEP` of it.
    """

    async def paced(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        began = stepped_at = loop.time()
        received = stepped = 0
        is_whole = is_late = False

        def interrupt() -> None:
            nonlocal is_late
            is_late = True
            task.cancel()

        async def timed() -> Message:
            nonlocal received, stepped, stepped_at, is_whole
            if is_whole:
                # The next message is that the caller has disconnected, which has no time limit.
                return await receive()
            # As `asyncio.timeout_at`, which takes five times as long, for every call.
            ends_at = min(began + received / BODY_BYTES_PER_SECOND, stepped_at) + BODY_SECONDS
            timer = loop.call_at(ends_at, interrupt)
            try:
                message = await receive()
            except asyncio.CancelledError:
                # The task may also have been cancelled by the server, which takes precedence.
                if is_late and not task.uncancel():
                    raise BodyTooSlow from None
                raise
            finally:
                timer.cancel()
            received += len(message.get("body", b""))
            if received - stepped >= BODY_BYTES_STEP:
                stepped, stepped_at = received, loop.time()
            is_whole = not message.get("more_body")
            return message

        try:
            await application(scope, timed, send)
        except BodyTooSlow as slow:
            await _refuse(send, slow)

    return paced


def _allowed_bytes(scope: Scope) -> int:
    """Return how long a body may be, by its sender and its target. The login is checked later."""
    if scope["method"] in {"GET", "HEAD", "OPTIONS"} or not _has_credential(scope):
        return ANONYMOUS_BODY_LIMIT
    try:
        view = resolve(scope["path"]).func
    except Resolver404:
        return ANONYMOUS_BODY_LIMIT
    rest = getattr(view, "cls", None)
    if rest is not None:
        own: int = getattr(rest, "body_limit", DEFAULT_BODY_LIMIT)
        return own if rest.authentication_classes else ANONYMOUS_BODY_LIMIT
    return LARGE_BODY_LIMIT if getattr(view, "login_required", True) else ANONYMOUS_BODY_LIMIT


def _address(scope: Scope) -> str:
    forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"x-forwarded-for"]
    return counted_address(address_of(scope, forwarded=",".join(forwarded)))


def _has_credential(scope: Scope) -> bool:
    session = f"{settings.SESSION_COOKIE_NAME}=".encode()
    return any(
        name.lower() in _CREDENTIALS or (name.lower() == b"cookie" and session in value)
        for name, value in scope["headers"]
    )


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return 0


def transport_headers() -> dict[str, str]:
    """Return the header that keeps browsers on https, as Django's middleware does, for answers that bypass it."""
    seconds = settings.SECURE_HSTS_SECONDS
    return {"Strict-Transport-Security": f"max-age={seconds}; includeSubDomains; preload"} if seconds else {}


async def _refuse(send: Send, refusal: RenseiError) -> None:
    request = HttpRequest()
    request.id = new_id("req")  # type: ignore[attr-defined]
    body = json.dumps(problem_body(request, refusal)).encode()
    headers = {
        "Content-Type": PROBLEM,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "Connection": "close",
        "X-Content-Type-Options": "nosniff",
        HEADER: request.id,  # type: ignore[attr-defined]
        **transport_headers(),
        **refusal_headers(refusal),
    }
    await send(
        {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
