"""Answers that no provider should send, and on which no client should fail."""

import gzip
from collections.abc import Awaitable, Callable

from rensei.simulator.directives import FaultDirective
from rensei.simulator.exchange import Exchange

_MEGABYTE = 1024 * 1024
FOREVER_SECONDS = 3600.0


class ConnectionCut(Exception):
    """Raised deliberately, so that the server closes the connection in the middle of an answer."""


class StreamEndedEarly(Exception):
    """Raised deliberately: a stream was closed properly, but before its last event."""


async def give_hostile_answer(exchange: Exchange, fault: FaultDirective) -> None:
    """
    Send the answer that a hostile fault names.

    :raises ConnectionCut: if the connection has to break
    """
    await _ANSWERS[fault.name](exchange, fault)


async def _redirect(exchange: Exchange, fault: FaultDirective) -> None:
    await exchange.answer(307, b"", headers={"location": fault.options.get("to", "/__redirected")})


async def _html(exchange: Exchange, fault: FaultDirective) -> None:
    status = fault.number("status", 502)
    page = b"<html><body><h1>Bad Gateway</h1></body></html>"
    await exchange.answer(status, page, headers={"content-type": "text/html"})


async def _badjson(exchange: Exchange, fault: FaultDirective) -> None:
    await exchange.answer(200, b'{"type": "message", "content": [', headers={"content-type": "application/json"})


async def _hugebody(exchange: Exchange, fault: FaultDirective) -> None:
    await exchange.start(200, headers={"content-type": "application/json"})
    await exchange.write(b'{"data": "')
    for _ in range(fault.number("mb", 1024)):
        await exchange.write(b"x" * _MEGABYTE)
        await exchange.wait(0.001)
    await exchange.write(b'"}', more=False)


async def _gzipbomb(exchange: Exchange, fault: FaultDirective) -> None:
    bomb = gzip.compress(b'{"data": "' + b" " * (fault.number("mb", 256) * _MEGABYTE) + b'"}', compresslevel=9)
    await exchange.answer(200, bomb, headers={"content-type": "application/json", "content-encoding": "gzip"})


async def _manyheaders(exchange: Exchange, fault: FaultDirective) -> None:
    headers = {f"x-noise-{number}": "x" * 1000 for number in range(fault.number("count", 1000))}
    await exchange.answer(200, b"{}", headers={"content-type": "application/json", **headers})


async def _hang(exchange: Exchange, fault: FaultDirective) -> None:
    await exchange.wait(FOREVER_SECONDS)


async def _reset(exchange: Exchange, fault: FaultDirective) -> None:
    # Without a status the server would send a 500, so the connection breaks right after the headers.
    await exchange.start(200, headers={"content-type": "application/json"})
    await exchange.write(b"")
    raise ConnectionCut


_ANSWERS: dict[str, Callable[[Exchange, FaultDirective], Awaitable[None]]] = {
    "redirect": _redirect,
    "html": _html,
    "badjson": _badjson,
    "hugebody": _hugebody,
    "gzipbomb": _gzipbomb,
    "manyheaders": _manyheaders,
    "hang": _hang,
    "reset": _reset,
}
HOSTILE = frozenset(_ANSWERS)
