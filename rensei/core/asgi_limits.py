"""Stops reading a body that no address would take, before it fills the disk. Views set the finer limits."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from django.http import HttpRequest

from rensei.core.api import LARGE_BODY_LIMIT, PROBLEM, RequestTooLarge, problem_body
from rensei.core.ids import new_id
from rensei.core.middleware import HEADER

BODY_LIMIT = LARGE_BODY_LIMIT + 1024 * 1024

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]


class _BodyTooLarge(Exception):
    """Unwinds the application, which reads the whole body before it answers anything."""


def limit_bodies(application: Application) -> Application:
    """Wrap an ASGI application so that it never receives more than `BODY_LIMIT` bytes, announced or not."""

    async def limited(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        if _announced(scope) > BODY_LIMIT:
            await _refuse(send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > BODY_LIMIT:
                raise _BodyTooLarge
            return message

        try:
            await application(scope, counted, send)
        except _BodyTooLarge:
            await _refuse(send)

    return limited


def _announced(scope: MutableMapping[str, Any]) -> int:
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def _refuse(send: Send) -> None:
    request = HttpRequest()
    request.id = new_id("req")  # type: ignore[attr-defined]
    refusal = RequestTooLarge(limit_mb=LARGE_BODY_LIMIT // 1024**2)
    body = json.dumps(problem_body(request, refusal)).encode()
    headers = {
        "Content-Type": PROBLEM,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "Connection": "close",
        "X-Content-Type-Options": "nosniff",
        HEADER: request.id,  # type: ignore[attr-defined]
    }
    await send(
        {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
