"""
`python -m tests.benchmarks.client`: load from connections that each send the next request when they have an answer.

It reads one order, a JSON object, from standard input, and writes what came of it as the last line. It checks every
answer: the status, that it is whole, and of a stream the number of its events.
"""

import asyncio
import base64
import gc
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.benchmarks.answers import EVENTS_OF_A_STREAM

# Answers that were under way when the time was over are waited for, so that the servers end in order.
PATIENCE_SECONDS = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


@dataclass(kw_only=True)
class Tally:
    """What all connections saw. Times are in seconds."""

    until: float
    whole: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    # Those that were answered within the time, and so count for a rate.
    in_time: int = 0


class Connection(asyncio.Protocol):
    def __init__(self, request: bytes, tally: Tally, *, streams: bool, repeats: bool) -> None:
        self._request = request
        self._tally = tally
        self._streams = streams
        self._repeats = repeats
        self._received = bytearray()
        self._body_at = 0
        self._body_end = 0
        self._began = 0.0
        self._saw_event = False
        # Its first event has come, and its last answer has; or it has failed.
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        received = self._received
        received += data
        if self._streams and not self._saw_event and b"data:" in received:
            self._saw_event = True
            self._tally.first.append(now - self._began)
            self._set(self.started)
        if not self._body_at:
            end = received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._body_at = end + 4
            found = _LENGTH.search(received, 0, end + 2)
            self._body_end = self._body_at + int(found[1]) if found else 0
        whole = len(received) >= self._body_end if self._body_end else received.endswith(b"\r\n0\r\n\r\n")
        if whole:
            self._finish(now)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._tally.failed["connection lost"] += 1
            self._end()

    def _send(self) -> None:
        self._received.clear()
        self._body_at = self._body_end = 0
        self._saw_event = False
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def _finish(self, now: float) -> None:
        fault = self._fault()
        if fault:
            self._tally.failed[fault] += 1
        else:
            self._tally.whole.append(now - self._began)
            self._tally.in_time += now <= self._tally.until
        if self._repeats and now < self._tally.until:
            self._send()
        else:
            self._end()
            self._transport.close()

    def _end(self) -> None:
        self._set(self.started)
        self._set(self.done)

    @staticmethod
    def _set(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)

    def _fault(self) -> str:
        """Say what is wrong with an answer, if anything is."""
        status = bytes(self._received[9:12])
        if status != b"200":
            return f"status {status.decode(errors='replace')}"
        body = self._received[self._body_at :]
        if not self._streams:
            return "" if b'"message"' in body and b'"usage"' in body else "not a message"
        events = _dechunked(body).count(b"event: ")
        return "" if events == EVENTS_OF_A_STREAM else f"{events} events"


def _dechunked(body: bytearray) -> bytes:
    pieces: list[bytes] = []
    at = 0
    while True:
        line_end = body.index(b"\r\n", at)
        size = int(body[at:line_end], 16)
        if not size:
            return b"".join(pieces)
        pieces.append(bytes(body[line_end + 2 : line_end + 2 + size]))
        at = line_end + 2 + size + 2


async def load(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out an order: `{url, headers, body, connections, seconds, streams, repeats}`."""
    where = urlsplit(order["url"])
    body = base64.b64decode(order["body"])
    lines = [f"POST {where.path} HTTP/1.1", f"host: {where.netloc}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in order["headers"].items()]
    request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    tally = Tally(until=time.perf_counter() + order["seconds"])
    loop = asyncio.get_running_loop()
    gc.disable()
    began = time.process_time()
    connections = []
    for _ in range(order["connections"]):
        _, connection = await loop.create_connection(
            lambda: Connection(request, tally, streams=order["streams"], repeats=order["repeats"]),
            where.hostname,
            where.port,
        )
        connections.append(connection)
    waiting = {connection.done for connection in connections}
    if not order["repeats"]:
        await asyncio.wait({connection.started for connection in connections}, timeout=PATIENCE_SECONDS)
        print(json.dumps({"open": len(tally.first)}), flush=True)
    _, late = await asyncio.wait(waiting, timeout=order["seconds"] + PATIENCE_SECONDS)
    tally.failed["no answer"] += len(late)
    return {
        "seconds": order["seconds"],
        "answered": len(tally.whole),
        "in_time": tally.in_time,
        "failed": {name: count for name, count in tally.failed.items() if count},
        "whole_ms": _percentiles(tally.whole),
        "first_ms": _percentiles(tally.first),
        "client_cpu_seconds": round(time.process_time() - began, 3),
    }


def _percentiles(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {f"p{percent}": round(ordered[round(last * percent / 100)] * 1000, 3) for percent in (50, 99)}


def main() -> None:
    print(json.dumps(asyncio.run(load(json.loads(sys.stdin.readline())))), flush=True)


if __name__ == "__main__":
    main()
