"""One request and its answer over ASGI: reading, writing, waiting, and detecting that the client has disconnected."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from rensei.simulator.compression import Compress, compressor

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

BODY_BYTES_MAX = 32 * 1024 * 1024


class ClientDisconnected(Exception):
    """The client closed the connection before the answer was complete."""


class Exchange:
    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query_string: str = scope["query_string"].decode("latin-1")
        self.headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            # Repeated headers are one list: https://www.rfc-editor.org/rfc/rfc9110#section-5.3
            known = self.headers.get(name.decode("latin-1").lower())
            line = value.decode("latin-1")
            self.headers[name.decode("latin-1").lower()] = line if known is None else f"{known}, {line}"
        self.body_is_too_large = False
        self.status: int | None = None
        self._encoding = ""
        self._compress: Compress | None = None
        self._receive = receive
        self._send = send
        self._gone = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.query_string, keep_blank_values=True)

    async def read_body(self) -> bytes:
        """
        Read the whole body, then start to watch for a disconnect of the client.

        The rest of a body that is too large is read and dropped, as a client that still writes would miss the answer.

        :raises ClientDisconnected: if the client disconnected
        """
        chunks: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            chunk = message.get("body", b"")
            size += len(chunk)
            if size <= BODY_BYTES_MAX:
                chunks.append(chunk)
            more = message.get("more_body", False)
        self._watch = asyncio.create_task(self._watch_for_disconnect())
        self.body_is_too_large = size > BODY_BYTES_MAX
        return b"".join(chunks)

    def compress(self, encoding: str) -> None:
        """Compress the body of the answer."""
        self._encoding, self._compress = encoding, compressor(encoding)

    async def answer_json(self, status: int, document: Any, *, headers: dict[str, str]) -> None:
        await self.answer(
            status, json.dumps(document).encode(), headers={"content-type": "application/json", **headers}
        )

    async def answer(self, status: int, body: bytes, *, headers: dict[str, str]) -> None:
        # The compressed length is known only when the body is written.
        length = {} if self._compress else {"content-length": str(len(body))}
        await self.start(status, headers={**headers, **length})
        await self.write(body if self.method != "HEAD" else b"", more=False)

    async def start(self, status: int, *, headers: dict[str, str]) -> None:
        if self._compress:
            headers = {**headers, "content-encoding": self._encoding}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._fail_if_gone()
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, chunk: bytes, *, more: bool = True) -> None:
        """
        Write a piece of the body.

        :raises ClientDisconnected: if the client has disconnected
        """
        self._fail_if_gone()
        if self._compress:
            chunk = self._compress(chunk, not more)
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def wait(self, seconds: float) -> None:
        """
        Wait, or end earlier when the client disconnects.

        :raises ClientDisconnected: if it does
        """
        try:
            await asyncio.wait_for(self._gone.wait(), timeout=seconds)
        except TimeoutError:
            return
        raise ClientDisconnected

    def close(self) -> None:
        if self._watch:
            self._watch.cancel()

    def _fail_if_gone(self) -> None:
        if self._gone.is_set():
            raise ClientDisconnected

    async def _watch_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()
