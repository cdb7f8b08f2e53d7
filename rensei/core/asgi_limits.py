"""
Stops reading a body that is too large or too slow, before it fills the disk or occupies a connection.

Views set the finer limits. The server bounds what precedes a body, and the time between requests.
"""

import asyncio
import json
import resource
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.urls import Resolver404, resolve

from rensei.core.api import (
    ANONYMOUS_BODY_LIMIT,
    DEFAULT_BODY_LIMIT,
    LARGE_BODY_LIMIT,
    PROBLEM,
    RequestTooLarge,
    problem_body,
)
from rensei.core.errors import RateLimited, RenseiError, Said
from rensei.core.ids import new_id
from rensei.core.limits import limit
from rensei.core.middleware import HEADER
from rensei.core.networks import counted_address
from rensei.core.proxies import address_of

_MIB = 1024 * 1024
BODY_SECONDS = limit(
    30,
    "seconds, and one more for every 4 KiB that have come",
    what="Time in which a request's body comes",
    told="the caller: 408 `REQUEST_TOO_SLOW`, and the connection is closed",
)
BODY_BYTES_PER_SECOND = 4 * 1024
BODIES_OF_ADDRESS = limit(
    256,
    "MiB",
    what="Bodies of the requests under way to REST and pages, together, each address (IPv6: /64) and process",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`, and the connection is closed",
)
BODIES = limit(
    1024,
    "MiB",
    what="Bodies of the requests under way to REST and pages, together, each process",
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
_CREDENTIALS = (b"authorization", b"x-api-key")
_FORWARDED = b"x-forwarded-for"

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


class _Bodies:
    """The bytes of the bodies that are being received or used, by the network of their senders."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()
        self._total = 0

    def take(self, sender: str, size: int) -> bool:
        """Count bytes, unless the sender or all senders together have too many under way."""
        if self._of[sender] + size > BODIES_OF_ADDRESS * _MIB or self._total + size > BODIES * _MIB:
            return False
        self._of[sender] += size
        self._total += size
        return True

    def leave(self, sender: str, size: int) -> None:
        self._total -= size
        self._of[sender] -= size
        if not self._of[sender]:
            del self._of[sender]


def limit_bodies(application: Application) -> Application:
    """
    Wrap an ASGI application so that it never receives more bytes than its view takes, announced or not.

    Without credentials, or where none are required, the limit is `ANONYMOUS_BODY_LIMIT`. Credentials are checked when
    the body is there, so what all bodies of one address take together is limited too.
    """
    bodies = _Bodies()

    async def limited(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        allowed = _allowed_bytes(scope)
        # Views refuse what is a little too large themselves.
        most = allowed if allowed == ANONYMOUS_BODY_LIMIT else allowed + _MIB
        if _announced(scope) > most:
            await _refuse(send, RequestTooLarge(limit=allowed))
            return
        sender = _sender(scope)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            if received + size > most:
                raise _Refused(RequestTooLarge(limit=allowed))
            if not bodies.take(sender, size):
                raise _Refused(RateLimited(seconds=1, extra={"retryAfter": 1}))
            received += size
            return message

        try:
            await application(scope, counted, send)
        except _Refused as refused:
            await _refuse(send, refused.refusal)
        finally:
            bodies.leave(sender, received)

    return limited


def pace_bodies(application: Application) -> Application:
    """Wrap an ASGI application so that it waits for a body no longer than `BODY_SECONDS` plus a time for its bytes."""

    async def paced(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        began = loop.time()
        received = 0
        is_whole = is_late = False

        def interrupt() -> None:
            nonlocal is_late
            is_late = True
            task.cancel()

        async def timed() -> Message:
            nonlocal received, is_whole
            if is_whole:
                # The next message is that the caller has disconnected, which has no time limit.
                return await receive()
            # As `asyncio.timeout_at`, which takes five times as long, for every call.
            timer = loop.call_at(began + BODY_SECONDS + received / BODY_BYTES_PER_SECOND, interrupt)
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
            is_whole = not message.get("more_body")
            return message

        try:
            await application(scope, timed, send)
        except BodyTooSlow as slow:
            await _refuse(send, slow)

    return paced


def _allowed_bytes(scope: MutableMapping[str, Any]) -> int:
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


def _sender(scope: MutableMapping[str, Any]) -> str:
    forwarded = b",".join(value for name, value in scope["headers"] if name.lower() == _FORWARDED)
    return counted_address(address_of(scope, forwarded=forwarded.decode("latin-1")))


def _has_credential(scope: MutableMapping[str, Any]) -> bool:
    session = f"{settings.SESSION_COOKIE_NAME}=".encode()
    return any(
        name.lower() in _CREDENTIALS or (name.lower() == b"cookie" and session in value)
        for name, value in scope["headers"]
    )


def _announced(scope: MutableMapping[str, Any]) -> int:
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
    }
    if "retryAfter" in refusal.extra:
        headers["Retry-After"] = str(refusal.extra["retryAfter"])
    await send(
        {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
