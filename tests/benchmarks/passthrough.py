"""
A bare pass-through: what a Python process needs to forward a call, and nothing else.

It knows no caller, no policy and no ledger. Rensei is measured against it, as nothing written in Python on the same
server can be faster.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

UPSTREAM = os.environ["BENCH_UPSTREAM"]
KEY = os.environ["BENCH_UPSTREAM_KEY"]
_OURS = {b"host", b"content-length", b"connection", b"x-api-key", b"transfer-encoding"}
_HOP_BY_HOP = {b"connection", b"transfer-encoding", b"keep-alive"}

_sessions: list[aiohttp.ClientSession] = []


async def application(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(name.decode(), value.decode()) for name, value in scope["headers"] if name not in _OURS]
    headers.append(("x-api-key", KEY))
    async with _session().request(scope["method"], UPSTREAM + scope["path"], data=body, headers=headers) as answer:
        kept = [(name, value) for name, value in answer.raw_headers if name.lower() not in _HOP_BY_HOP]
        await send({"type": "http.response.start", "status": answer.status, "headers": kept})
        if answer.headers.get("content-length"):
            await send({"type": "http.response.body", "body": await answer.read()})
            return
        async for piece in answer.content.iter_any():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _session() -> aiohttp.ClientSession:
    """The one session of the process, made by its first call, because it belongs to a running loop."""
    if not _sessions:
        connector = aiohttp.TCPConnector(limit=0)
        _sessions.append(aiohttp.ClientSession(connector=connector, auto_decompress=False))
    return _sessions[0]
