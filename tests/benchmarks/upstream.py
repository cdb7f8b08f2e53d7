"""
`python -m tests.benchmarks.upstream`: a stand-in for the provider that costs little, and remembers each call.

It speaks just enough HTTP/1.1 for the clients of a benchmark. `GET /bench/log?since=N` tells of every call from
number N on: the attempt that it carried, the tokens it was told, and whether all of its answer was sent. Calls with the
key of somebody else whom Rensei is compared with are answered and not remembered, however late they come.
"""

import argparse
import asyncio
import gc
import json
import re
from typing import Any

from tests.benchmarks import answers

_STREAMS = re.compile(rb'"stream"\s*:\s*true')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_ATTEMPT = re.compile(rb"\r\nx-rensei-attempt:\s*(\S+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.IGNORECASE)
_CHUNKED_END = b"0\r\n\r\n"
# The beginning of every token that Rensei gives out. None may ever arrive here.
_RENSEI_TOKEN = b"rsk_live_"


class Log:
    """What was served, in three flat columns: a benchmark makes a hundred thousand calls, and the log must not cost."""

    def __init__(self, variants: list[answers.Variant]) -> None:
        self._variants = variants
        self.attempts: list[bytes] = []
        self.chosen = bytearray()
        self.ended = bytearray()
        self.leaked_tokens = 0
        self.served = 0

    def begin(self, attempt: bytes) -> int:
        """Note a call, and give its number."""
        number = len(self.attempts)
        self.attempts.append(attempt)
        self.chosen.append(number % answers.VARIANTS)
        self.ended.append(0)
        return number

    def end(self, number: int | None) -> None:
        """Note that all of an answer was sent."""
        if number is not None:
            self.ended[number] = 1

    def since(self, number: int) -> dict[str, Any]:
        """Tell of the calls from a number on, as `[attempt, input tokens, output tokens, ended]`."""
        return {
            "calls": [self._call(each) for each in range(number, len(self.attempts))],
            "leakedTokens": self.leaked_tokens,
        }

    def _call(self, number: int) -> list[Any]:
        variant = self._variants[self.chosen[number]]
        attempt = self.attempts[number].decode()
        return [attempt, variant.input_tokens, variant.output_tokens, bool(self.ended[number])]


class Connection(asyncio.Protocol):
    """One client's connection, which sends one request after the other."""

    def __init__(self, log: Log, variants: list[answers.Variant], *, slow_event_seconds: float) -> None:
        self._log = log
        self._slow_event_seconds = slow_event_seconds
        self._variants = variants
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head, body_at = self._received[: end + 2], end + 4
            if found := _LENGTH.search(head):
                body_end = body_at + int(found[1])
                if len(self._received) < body_end:
                    return
            elif _CHUNKED.search(head):
                last = self._received.find(_CHUNKED_END, body_at)
                if last < 0:
                    return
                body_end = last + len(_CHUNKED_END)
            else:
                body_end = body_at
            body, self._received = self._received[body_at:body_end], self._received[body_end:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        target = head.split(b" ", 2)[1]
        path, _, query = target.partition(b"?")
        match path:
            case b"/v1/messages":
                self._answer_message(head, body)
            case b"/v1/messages/count_tokens":
                self._transport.write(answers.counted_tokens(len(body) // 4))
            case b"/v1/models":
                self._transport.write(answers.models_page())
            case b"/bench/log":
                since = int(query.partition(b"since=")[2] or 0)
                self._transport.write(answers.json_response(self._log.since(since)))
            case _:
                self._transport.write(answers.not_found())

    def _answer_message(self, head: bytes, body: bytes) -> None:
        if _RENSEI_TOKEN in head:
            self._log.leaked_tokens += 1
        found = _ATTEMPT.search(head)
        remembered = answers.OTHERS_KEY not in head
        call = self._log.begin(found[1] if found else b"") if remembered else None
        self._log.served += 1
        number = b"%010d" % self._log.served
        variant = self._variants[(self._log.served if call is None else call) % answers.VARIANTS]
        if _STREAMS.search(body):
            first = variant.pieces[0].replace(answers.NUMBER, number)
            pause = self._slow_event_seconds if b"slowly" in body else 0.0
            self._send_piece(call, (first, *variant.pieces[1:]), 0, pause)
        else:
            self._transport.write(variant.plain.replace(answers.NUMBER, number))
            self._log.end(call)

    def _send_piece(self, call: int | None, pieces: tuple[bytes, ...], index: int, pause: float) -> None:
        """Send each event by itself, as a provider does, whoever else waits in between."""
        if self._transport.is_closing():
            return
        self._transport.write(pieces[index])
        if index + 1 == len(pieces):
            self._log.end(call)
        elif pause:
            self._loop.call_later(pause, self._send_piece, call, pieces, index + 1, pause)
        else:
            self._loop.call_soon(self._send_piece, call, pieces, index + 1, pause)


async def serve(*, port: int, seed: int, slow_event_seconds: float) -> None:
    variants = answers.make_variants(seed)
    log = Log(variants)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(log, variants, slow_event_seconds=slow_event_seconds), "127.0.0.1", port, backlog=4096
    )
    # Nothing here makes cycles worth looking for, and a look would be a pause in everyone's measurement.
    gc.disable()
    print(json.dumps({"listening": port}), flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.upstream", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--slow-event-seconds", type=float, required=True, help="pause of a stream asked for slowly")
    asyncio.run(serve(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
