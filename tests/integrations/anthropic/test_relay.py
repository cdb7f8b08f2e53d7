"""Whose headers go where, and what an answer that goes by tells of itself."""

import asyncio
import json
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrations.providers.anthropic import relay
from integrations.providers.anthropic.answer_size import ANSWER_BYTES_MAX, answer_bytes_max, may_cite
from integrations.providers.anthropic.relay import Tap, outgoing_headers
from integrations.providers.anthropic.usage import asked_factors
from integrations.providers.base import ProviderFailure

CITED = {"type": "document", "citations": {"enabled": True}}
USAGE = {"input_tokens": 11, "output_tokens": 1}
EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"model": "m", "usage": USAGE}},
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word " * 40}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 40}},
    {"type": "message_stop"},
]


def stream(events: list[dict[str, Any]]) -> bytes:
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def odd_inputs() -> st.SearchStrategy[str]:
    """Make JSON that a model may write, or be made to write, and that no reader of ours builds."""
    values = st.sampled_from(
        ["1", '"usage"', '"a\\"usage\\": {}"', '{"output_tokens": 0}', "NaN", "1e400", "9" * 5000, '"\\u0000"', "null"]
    )
    return st.builds(
        lambda value, depth, count: "[" * depth + ", ".join([value] * count) + "]" * depth,
        values,
        st.sampled_from([1, 3, 200, 1500]),
        st.sampled_from([1, 2, 130_000]),
    ).filter(lambda text: len(text) < 3_000_000)


class TestOutgoingHeaders:
    def test_are_the_dialects_alone(self) -> None:
        given = {
            "anthropic-version": "2023-06-01",
            "anthropic-beta": "a,b",
            "anthropic-workspace-id": "wrkspc_1",
            "content-type": "application/json",
            "user-agent": "x",
            "x-api-key": "k",
            "authorization": "Bearer k",
            "cookie": "c",
            "proxy-authorization": "p",
            "x-forwarded-for": "1.2.3.4",
            "x-rensei-attempt": "att_forged",
            "host": "h",
            "content-length": "3",
        }

        assert set(outgoing_headers(given)) == {"anthropic-version", "anthropic-beta", "content-type", "user-agent"}


class TestATap:
    @pytest.mark.parametrize("size", [1, 7, 1000, 10**6], ids=str)
    def test_counts_a_stream_in_pieces_of_any_size(self, size: int) -> None:
        tap, whole = Tap(input_tokens_about=5, streams=True), stream(EVENTS)

        for at in range(0, len(whole), size):
            tap.take(whole[at : at + size])
        answer = tap.answer(request_id="req_1")

        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (11, 40)
        assert not answer.usage_estimated
        assert (answer.text, answer.content) == ("", [])

    def test_counts_a_whole_answer(self) -> None:
        tap = Tap(input_tokens_about=5, streams=False)
        usage = {"input_tokens": 11, "output_tokens": 40}
        tap.take(json.dumps({"type": "message", "content": [], "stop_reason": "end_turn", "usage": usage}).encode())

        answer = tap.answer(request_id="req_1")

        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (11, 40)

    @pytest.mark.parametrize(
        ("asked", "reported", "factor", "is_sure"),
        [
            ({"speed": "fast"}, {}, Fraction(2), False),
            ({"inference_geo": "us"}, {}, Fraction(11, 10), False),
            ({"speed": "fast", "inference_geo": "us"}, {"speed": "standard"}, Fraction(11, 10), False),
            ({"speed": "fast"}, {"speed": "standard"}, Fraction(1), True),
            ({"speed": "standard", "service_tier": "auto", "inference_geo": None}, {}, Fraction(1), True),
            ({"speed": ["fast"], "inference_geo": "mars"}, {}, Fraction(1), True),
        ],
    )
    def test_takes_what_was_asked_for_as_given_where_it_is_not_reported(
        self, asked: dict[str, Any], reported: dict[str, Any], factor: Fraction, is_sure: bool
    ) -> None:
        tap = Tap(input_tokens_about=5, streams=False, asked=asked_factors({"model": "m", **asked}))
        usage = {"input_tokens": 11, "output_tokens": 40, **reported}
        answer = {"type": "message", "model": "m", "content": [], "stop_reason": "end_turn", "usage": usage}
        tap.take(json.dumps(answer).encode())

        (part,) = tap.answer(request_id="req_1").parts

        assert (part.price_factor, part.estimated) == (factor, not is_sure)

    @given(inputs=odd_inputs(), stop=st.sampled_from(['"tool_use"', '"x\\"usage\\": {}"', "null"]))
    def test_charges_a_whole_answer_as_reported_however_odd_its_content_is(self, inputs: str, stop: str) -> None:
        tap = Tap(input_tokens_about=5, streams=False)
        block = f'{{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {{"usage": {inputs}}}}}'
        tap.take(
            f'{{"id": "msg_1", "type": "message", "model": "m", "content": [{block}], "stop_reason": {stop}, '
            '"usage": {"input_tokens": 11, "output_tokens": 40}, "container": null}'.encode()
        )

        answer = tap.answer(request_id="req_1")

        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (11, 40)
        assert answer.parts[0].model_id == "m"

    @pytest.mark.parametrize("raw", [b"", b"[]", b"<html>", b'{"type": "message", "content": ' + b"[" * 3000])
    def test_counts_the_bytes_of_what_is_no_answer(self, raw: bytes) -> None:
        tap = Tap(input_tokens_about=5, streams=False)
        tap.take(raw)

        with pytest.raises(ProviderFailure) as caught:
            tap.answer(request_id="req_1")

        assert caught.value.usage is not None
        assert caught.value.usage.output_tokens >= len(raw) // 4
        assert caught.value.output_seen is bool(raw)

    def test_estimates_a_stream_that_broke_off_from_what_went_by(self) -> None:
        tap = Tap(input_tokens_about=5, streams=True)
        tap.take(stream(EVENTS[:4]))

        with pytest.raises(ProviderFailure) as caught:
            tap.answer(request_id="req_1")

        assert caught.value.code == "PROVIDER_STREAM_BROKEN"
        assert caught.value.maybe_billed
        assert not tap.has_error
        assert caught.value.usage is not None
        assert caught.value.usage.input_tokens == 11
        assert caught.value.usage.output_tokens > 30

    def test_raises_the_providers_own_error(self) -> None:
        tap = Tap(input_tokens_about=5, streams=True)
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        tap.take(stream([*EVENTS[:4], error]))

        with pytest.raises(ProviderFailure) as caught:
            tap.answer(request_id="req_1")

        assert caught.value.code == "PROVIDER_OVERLOADED"
        assert tap.has_error

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"<html>", b'{"type": "error"}'], ids=repr)
    def test_takes_what_is_no_message_for_broken(self, body: bytes) -> None:
        tap = Tap(input_tokens_about=5, streams=False)
        tap.take(body)

        with pytest.raises(ProviderFailure):
            tap.answer(request_id="")


class TestReadWhole:
    @pytest.mark.parametrize(("pieces", "held"), [(8, 0), (9, 1), (24, 16)])
    def test_holds_what_follows_the_first_part(self, pieces: int, held: int) -> None:
        piece = b"x" * (relay.HELD_FROM // 8)

        async def read() -> tuple[bytes, list[int]]:
            answer = SimpleNamespace(content=aiohttp.StreamReader(Mock(), 2**16), close=lambda: None)
            holds: list[int] = []

            async def hold(size: int) -> None:
                holds.append(size)

            for _ in range(pieces):
                answer.content.feed_data(piece)
            answer.content.feed_eof()
            whole = await relay.read_whole(answer, bytes_max=pieces * len(piece), hold=hold)  # type: ignore[arg-type]
            return whole, holds

        whole, holds = asyncio.run(read())

        assert whole == piece * pieces
        assert sum(holds) == held * len(piece)


class TestAnswerBytesMax:
    @pytest.mark.parametrize(
        "changed",
        [
            {"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]},
            {"tools": [{"type": "made_up_20300101", "name": "made_up"}]},
            {"mcp_servers": [{"type": "url", "url": "https://tools.example"}]},
            {"context_management": {"edits": []}},
            {"container": "container_1"},
            {"messages": [{"role": "user", "content": [CITED]}]},
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [CITED]}]}]},
        ],
    )
    def test_is_the_largest_where_others_write_into_an_answer(self, changed: dict[str, Any]) -> None:
        tools = changed.get("tools", [])

        most = answer_bytes_max(changed, tools, max_tokens=1, has_unknown=False, may_cite=may_cite(changed))

        assert most == ANSWER_BYTES_MAX

    @pytest.mark.parametrize("tools", [[], [{"name": "look_up"}], [{"type": "bash_20250124", "name": "bash"}]])
    def test_grows_with_the_tokens(self, tools: list[dict[str, Any]]) -> None:
        most = partial(answer_bytes_max, {}, tools, may_cite=False)
        sizes = [most(max_tokens=tokens, has_unknown=False) for tokens in (0, 1000, 10**9)]

        assert sizes[0] < sizes[1] < sizes[2] == ANSWER_BYTES_MAX
        assert most(max_tokens=1, has_unknown=True) == ANSWER_BYTES_MAX


class TestAnAnswerWhoseConnectionBreaks:
    @pytest.mark.parametrize("read", [relay.read_piece, relay.read_failure], ids=["200", "400"])
    def test_is_read_as_far_as_it_arrived_while_nothing_was_reading(self, read: Any) -> None:
        async def provider(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 400 Bad\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            await may_end.wait()
            writer.write(b"4\r\nlast\r\n")
            await writer.drain()
            writer.close()

        async def go() -> tuple[bytes, Any]:
            server = await asyncio.start_server(provider, "127.0.0.1", 0)
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with server, aiohttp.ClientSession() as session, session.get(address) as answer:
                first = await relay.read_piece(answer)
                may_end.set()
                # Here the gateway waits for a thread.
                while answer.content.exception() is None:  # noqa: ASYNC110 - aiohttp has no event for it
                    await asyncio.sleep(0.001)
                left = await read(answer)
                with pytest.raises(aiohttp.ClientError):
                    await relay.read_piece(answer)
                return first, left

        may_end = asyncio.Event()
        first, left = asyncio.run(asyncio.wait_for(go(), 30))

        assert (first, left if isinstance(left, bytes) else left[0]) == (b"first", b"last")
