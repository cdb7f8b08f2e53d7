"""Reading the body of a request at the gateway, within its limits."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from rensei.core.api import LARGE_BODY_LIMIT, RequestTooLarge
from rensei.core.asgi_limits import BodyTooSlow
from rensei.core.limits import limit

BODY_DROPPED_MAX = limit(
    4 * LARGE_BODY_LIMIT,
    "bytes",
    what="Gateway: rest of a refused body that is read, so that the caller sees the answer",
    told="the caller: the connection is closed",
)
DROP_SECONDS_MAX = limit(
    10,
    "seconds",
    what="Gateway: time for which the rest of a refused body is read",
    told="the caller: the connection is closed",
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Upload:
    """The caller's upload. The rest of an unread body is dropped: a client that still sends would miss the response."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._size = 0
        self._is_whole = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        self._is_whole = not message.get("more_body")
        return message

    async def drop_rest(self) -> None:
        """Read and drop the rest, within limits of time and size. Beyond these, the connection is closed."""
        with suppress(TimeoutError, BodyTooSlow):
            async with asyncio.timeout(DROP_SECONDS_MAX):
                while not self._is_whole and self._size <= BODY_DROPPED_MAX:
                    await self()


async def read_body(headers: dict[str, str], receive: Receive, hold: Callable[[int], None]) -> bytes:
    """
    Read a body, and count its bytes as they arrive.

    :raises RequestTooLarge: if the announced or received size exceeds the limit
    """
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > LARGE_BODY_LIMIT:
        raise RequestTooLarge(limit=LARGE_BODY_LIMIT)
    size = 0
    pieces: list[bytes] = []
    message: Message = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > LARGE_BODY_LIMIT:
            raise RequestTooLarge(limit=LARGE_BODY_LIMIT)
        hold(len(pieces[-1]))
    return b"".join(pieces)
