"""Calls under way, over real HTTP: how they go well, break, stall, lie, and are hung up on."""

import json
import threading
import time
import tracemalloc
from typing import Any

import pytest

from integrations.outbound import http as outbound
from integrations.providers.anthropic import ADAPTER
from integrations.providers.anthropic.messages import ContextWindowExceeded
from integrations.providers.anthropic.reply import Reply
from integrations.providers.base import Answer, ProviderFailure, StreamEvent, TextDelta, UsageReport
from rensei.core.usage import Usage, total
from tests.integrations.anthropic.conftest import make_entry, make_request
from tests.waiting import wait_until

TOOL = {
    "name": "look_up",
    "description": "Look something up",
    "input_schema": {"type": "object", "properties": {"what": {"type": "string"}, "times": {"type": "integer"}}},
}


def _read(stream: Any) -> tuple[list[StreamEvent], ProviderFailure | None]:
    events: list[StreamEvent] = []
    try:
        events.extend(stream)
    except ProviderFailure as failure:
        return events, failure
    return events, None


def _answer(stream: Any) -> Answer:
    events, failure = _read(stream)
    assert failure is None
    assert isinstance(events[-1], Answer)
    return events[-1]


class TestAnswer:
    def test_comes_last_after_its_pieces(self, open_stream):
        events, failure = _read(open_stream("[[reply 30 words]]"))

        answer = events[-1]
        assert failure is None
        assert isinstance(answer, Answer)
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == answer.text
        assert len(answer.text.split()) == 30
        assert answer.stop_reason == "end_turn"
        assert not answer.usage_estimated

    def test_has_the_usage_that_the_provider_logged(self, simulator, open_stream):
        answer = _answer(open_stream("[[reply 30 words]]"))

        logged = simulator.requests()[-1]
        assert answer.usage.input_tokens == logged["usage"]["input_tokens"]
        assert answer.usage.output_tokens == logged["usage"]["output_tokens"]
        assert answer.usage.thinking_tokens == logged["usage"]["output_tokens_details"]["thinking_tokens"] > 0
        assert answer.request_id == logged["request_id"]

    def test_tells_the_prompts_usage_before_the_first_piece(self, open_stream):
        events, _ = _read(open_stream("[[reply 30 words]]"))

        assert isinstance(events[0], UsageReport)
        assert events[0].usage.input_tokens > 0

    def test_keeps_thinking_with_its_signature(self, open_stream):
        answer = _answer(open_stream("Hello", model_id="claude-haiku-4-5-20251001"))

        assert answer.content[0]["type"] == "thinking"
        assert answer.content[0]["thinking"]
        assert answer.content[0]["signature"]
        assert answer.content[1] == {"type": "text", "text": answer.text}

    def test_can_be_sent_back(self, open_stream, credential):
        begun = open_stream("Hello", model_id="claude-haiku-4-5-20251001")
        first = _answer(begun)
        turns = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": "And then?"},
        ]
        params = ADAPTER.build(make_request(messages=turns), entry=make_entry("claude-haiku-4-5-20251001")).params

        answer = _answer(
            ADAPTER.stream(params, credential=begun._credential, attempt_id="attempt-2", timeout_seconds=20)
        )

        assert answer.stop_reason == "end_turn"

    def test_puts_a_tools_input_together(self, open_stream):
        answer = _answer(open_stream("[[use look_up]]", tools=[TOOL]))

        assert answer.stop_reason == "tool_use"
        call = answer.content[-1]
        assert (call["name"], call["input"]) == ("look_up", {"what": "example", "times": 1})

    def test_tells_cache_writes_by_their_lifetime_and_reads(self, credential):
        opened = credential()
        entry = make_entry("claude-haiku-5-5")
        system = "Think deeply. " * 1000

        def usage(caching: str) -> Usage:
            request = make_request(system=system + caching, prompt_caching=caching)
            params = ADAPTER.build(request, entry=entry).params
            return _answer(ADAPTER.stream(params, credential=opened, attempt_id="a", timeout_seconds=20)).usage

        first, second, static = usage("ephemeral"), usage("ephemeral"), usage("static")

        assert first.cache_write_5m_tokens > 4000
        assert first.cache_write_1h_tokens == first.cache_read_tokens == 0
        assert second.cache_read_tokens == first.cache_write_5m_tokens
        assert static.cache_write_1h_tokens > 4000
        assert static.cache_write_5m_tokens == 0

    def test_skips_what_it_does_not_know(self, open_stream):
        answer = _answer(open_stream("[[fault:unknown-events]] [[reply 9 words]]"))

        assert len(answer.text.split()) == 9

    def test_is_not_billed_where_it_was_refused_before_it_began(self):
        reply = Reply(input_tokens_about=5)
        reply.take({"type": "message_start", "message": {"usage": {"input_tokens": 100, "output_tokens": 1}}})
        reply.take({"type": "message_delta", "delta": {"stop_reason": "refusal"}, "usage": {"output_tokens": 1}})

        assert total(reply.parts()) == Usage()


class TestRequest:
    def test_carries_our_headers_and_no_others(self, simulator, open_stream, monkeypatch, credential):
        for name, value in {
            "ANTHROPIC_API_KEY": "wrong",
            "ANTHROPIC_AUTH_TOKEN": "wrong",
            "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
            "ANTHROPIC_CUSTOM_HEADERS": "x-api-key: wrong\nauthorization: Bearer wrong\nanthropic-beta: none",
            "HTTP_PROXY": "http://127.0.0.1:9",
        }.items():
            monkeypatch.setenv(name, value)

        _answer(open_stream("Hello"))

        logged = simulator.requests()[-1]
        assert set(logged["header_names"]) == {
            "accept",
            "accept-encoding",
            "anthropic-version",
            "authorization",
            "connection",
            "content-length",
            "content-type",
            "host",
            "user-agent",
            "x-rensei-attempt",
        }
        assert logged["anthropic_version"] == "2026-10-21"
        assert logged["attempt_id"] == "attempt-1"
        assert logged["anthropic_beta"] is None

    def test_names_the_workspace_if_there_is_one(self, simulator, credential):
        opened = credential(workspace_id="wrkspc_1")

        ADAPTER.test_connection(credential=opened)

        assert simulator.requests()[-1]["workspace_id"] == "wrkspc_1"

    def test_is_made_once_however_it_fails(self, simulator, open_stream):
        _read(open_stream("[[fault:500]]"))

        assert len(simulator.requests()) == 1

    def test_is_not_made_before_anyone_reads(self, simulator, open_stream):
        open_stream("Hello")

        assert simulator.requests() == []


class TestBrokenStream:
    @pytest.mark.parametrize("fault", ["truncate", "cut"])
    def test_fails_with_what_had_come(self, open_stream, fault):
        events, failure = _read(open_stream(f"[[fault:{fault} after=5]] [[reply 90 words]]"))

        assert failure is not None
        assert failure.code == "PROVIDER_STREAM_BROKEN"
        assert not failure.retryable
        assert failure.maybe_billed
        assert failure.output_seen
        assert failure.text == "".join(event.text for event in events if isinstance(event, TextDelta))
        assert failure.text
        assert failure.usage is not None
        assert failure.usage.input_tokens > 0
        # The count at the start of a stream is a placeholder: what came is estimated instead.
        assert failure.usage.output_tokens > 5

    def test_fails_as_the_error_event_says(self, open_stream):
        _, failure = _read(open_stream("[[fault:stream-error after=3]] [[reply 90 words]]"))

        assert failure is not None
        assert (failure.code, failure.diagnosis) == ("PROVIDER_OVERLOADED", "OVERLOADED")
        assert failure.status == 200
        assert not failure.retryable
        assert failure.text

    def test_is_not_tried_again_once_a_block_had_begun(self, open_stream):
        _, failure = _read(open_stream("[[fault:stream-error after=0]]"))

        assert failure is not None
        assert failure.output_seen
        assert not failure.retryable

    @pytest.mark.parametrize(
        ("fault", "code", "name"),
        [
            ("html", "PROVIDER_UNAVAILABLE", "SERVER_ERROR"),
            ("html status=404", "PROVIDER_UNAVAILABLE", "NOT_THE_API"),
            ("badjson", "PROVIDER_UNAVAILABLE", "NOT_THE_API"),
            ("redirect to=http://169.254.169.254/", "PROVIDER_UNAVAILABLE", "REDIRECTED"),
            ("gzipbomb mb=64", "PROVIDER_UNAVAILABLE", "NOT_THE_API"),
            ("manyheaders", "PROVIDER_UNAVAILABLE", "CONNECTION_LOST"),
        ],
    )
    def test_survives_an_answer_of_any_other_kind(self, open_stream, fault, code, name):
        _, failure = _read(open_stream(f"[[fault:{fault}]]"))

        assert failure is not None
        assert (failure.code, failure.diagnosis) == (code, name)

    def test_reads_no_endless_answer(self, open_stream):
        tracemalloc.start()
        _, failure = _read(open_stream("[[fault:hugebody mb=64]]"))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert failure is not None
        assert peak < 20_000_000

    def test_follows_no_redirect(self, simulator, open_stream):
        _read(open_stream("[[fault:redirect]]"))

        assert [request["path"] for request in simulator.requests()] == ["/v1/messages"]

    def test_breaks_before_any_answer(self, open_stream):
        _, failure = _read(open_stream("[[fault:reset]]"))

        assert failure is not None
        assert failure.maybe_billed
        assert failure.sent


class TestUsage:
    @pytest.mark.parametrize(
        "more",
        [
            {"usage": {"output_tokens": 0, "input_tokens": 0}},
            {"usage": {"output_tokens": 1}, "delta": {"stop_reason": None}},
            {"usage": None},
            {"delta": None},
            {"usage": {"input_tokens": None, "server_tool_use": None}},
        ],
    )
    def test_and_the_reason_of_the_end_are_never_taken_back(self, open_stream, more):
        answer = _answer(open_stream(f"[[reply 90 words]] [[delta {json.dumps(more)}]]"))
        alone = _answer(open_stream("[[reply 90 words]]"))

        assert answer.usage.output_tokens == alone.usage.output_tokens >= 90
        assert answer.usage.input_tokens > 0
        assert answer.stop_reason == "end_turn"

    @pytest.mark.parametrize("directive", ["lines cr", "lines crlf", "lines open"])
    def test_is_read_however_the_lines_end(self, simulator, open_stream, directive):
        answer = _answer(open_stream(f"[[reply 90 words]] [[{directive}]]"))

        assert answer.usage.output_tokens == simulator.requests()[-1]["usage"]["output_tokens"] >= 90
        assert not answer.usage_estimated

    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
    def test_is_read_of_a_compressed_answer(self, simulator, open_stream, encoding):
        answer = _answer(open_stream(f"[[reply 90 words]] [[encode {encoding}]]"))

        assert len(answer.text.split()) == 90
        assert answer.usage.output_tokens == simulator.requests()[-1]["usage"]["output_tokens"]

    def test_of_an_answer_in_an_unknown_encoding_is_asked_for_by_a_sentence(self, open_stream):
        events, failure = _read(open_stream("[[encode squeeze]]"))

        assert events == []
        assert failure is not None
        assert (failure.code, failure.diagnosis) == ("PROVIDER_UNAVAILABLE", "ENCODING_UNKNOWN")
        assert failure.maybe_billed

    @pytest.mark.parametrize("fault", ["no-usage", "negative-usage", "huge-usage", "nan-usage"])
    def test_is_estimated_where_it_cannot_be_believed(self, open_stream, fault):
        answer = _answer(open_stream(f"[[fault:{fault}]] [[reply 90 words]]"))

        assert answer.usage_estimated
        assert 0 < answer.usage.input_tokens < 1000
        assert 30 < answer.usage.output_tokens < 1000


class TestTime:
    def test_ends_a_silent_stream(self, open_stream, monkeypatch):
        monkeypatch.setattr(outbound, "IDLE_SECONDS_MAX", 0.5)
        began = time.monotonic()

        _, failure = _read(open_stream("[[stall after=3]] [[reply 90 words]]"))

        assert failure is not None
        assert failure.code == "PROVIDER_STREAM_BROKEN"
        assert failure.usage is not None
        assert time.monotonic() - began < 5

    def test_ends_a_call_without_an_answer(self, open_stream, monkeypatch):
        monkeypatch.setattr(outbound, "IDLE_SECONDS_MAX", 0.5)

        _, failure = _read(open_stream("[[stall]]"))

        assert failure is not None
        assert (failure.code, failure.diagnosis) == ("PROVIDER_UNAVAILABLE", "NO_ANSWER")
        assert failure.maybe_billed

    @pytest.mark.parametrize("prompt", ["[[stall]]", "[[stall after=3]]", "[[slow 0.1]] [[reply 300 words]]"])
    def test_ends_every_call_at_its_deadline(self, open_stream, prompt):
        began = time.monotonic()

        _, failure = _read(open_stream(prompt, seconds=1))

        assert failure is not None
        assert failure.provider_code == "deadline"
        assert not failure.retryable
        assert time.monotonic() - began < 4


class TestClose:
    @pytest.mark.parametrize("prompt", ["[[stall]]", "[[stall after=3]]", "[[slow 0.1]] [[reply 300 words]]"])
    def test_ends_the_iteration_from_another_thread(self, open_stream, prompt):
        stream = open_stream(prompt)
        hang_up = threading.Timer(0.7, stream.close)
        hang_up.start()
        began = time.monotonic()

        events, failure = _read(stream)

        hang_up.join()
        assert failure is None
        assert not any(isinstance(event, Answer) for event in events)
        assert time.monotonic() - began < 4

    def test_leaves_what_was_reported(self, open_stream):
        stream = open_stream("[[stall after=9]] [[reply 300 words]]")
        hang_up = threading.Timer(0.7, stream.close)
        hang_up.start()

        _read(stream)

        hang_up.join()
        (part,) = stream.parts_so_far()
        usage = part.usage
        assert usage.input_tokens > 0
        assert usage.output_tokens > 5

    def test_is_seen_by_the_provider(self, simulator, open_stream):
        stream = open_stream("[[slow 0.05]] [[reply 900 words]]")
        for event in stream:
            if isinstance(event, TextDelta):
                stream.close()

        wait_until(lambda: simulator.requests()[-1]["outcome"] is not None, seconds=5)
        assert simulator.requests()[-1]["outcome"] == "client_disconnected"

    def test_sends_nothing_if_it_comes_first(self, simulator, open_stream):
        stream = open_stream("Hello")
        stream.close()

        assert _read(stream) == ([], None)
        assert stream.parts_so_far() == ()
        assert simulator.requests() == []


class TestCountInputTokens:
    def test_asks_anthropic(self, credential):
        params = ADAPTER.build(make_request(system="one two"), entry=make_entry("claude-opus-4-8")).params

        counted = ADAPTER.count_input_tokens(params, credential=credential(), context_window_tokens=200_000)

        assert counted > 3

    def test_fails_as_every_call(self, credential):
        turns = [{"role": "user", "content": "[[fault:529 on=count_tokens]]"}]
        params = ADAPTER.build(make_request(messages=turns), entry=make_entry("claude-opus-4-8")).params

        with pytest.raises(ProviderFailure) as raised:
            ADAPTER.count_input_tokens(params, credential=credential(), context_window_tokens=200_000)

        assert raised.value.code == "PROVIDER_OVERLOADED"

    def test_says_that_a_prompt_that_is_too_large_to_be_counted_does_not_fit(self, credential):
        # One word, so that its tokens cannot be told from below; the provider takes bodies of up to 32 MB.
        turns = [{"role": "user", "content": "a" * 33 * 1024**2}]
        params = ADAPTER.build(make_request(messages=turns), entry=make_entry("claude-opus-4-8")).params

        with pytest.raises(ContextWindowExceeded) as raised:
            ADAPTER.count_input_tokens(params, credential=credential(), context_window_tokens=1_000_000)

        assert raised.value.extra["inputTokens"] > 1_000_000
        assert raised.value.extra["contextWindowTokens"] == 1_000_000

    def test_leaves_what_is_large_for_another_reason_as_it_is(self, credential):
        turns = [{"role": "user", "content": "[[fault:toolarge on=count_tokens]]"}]
        params = ADAPTER.build(make_request(messages=turns), entry=make_entry("claude-opus-4-8")).params

        with pytest.raises(ProviderFailure) as raised:
            ADAPTER.count_input_tokens(params, credential=credential(), context_window_tokens=1_000_000)

        assert raised.value.diagnosis == "TOO_LARGE"


class TestCheapestModel:
    @pytest.mark.parametrize(
        ("ids", "chosen"),
        [
            (["claude-opus-5-5", "claude-haiku-5-5", "claude-haiku-4-5-20251001"], "claude-haiku-5-5"),
            (["claude-opus-5-5", "claude-sonnet-5"], "claude-sonnet-5"),
            (["claude-opus-5-5"], "claude-opus-5-5"),
            ([], "claude-haiku-5-5"),
        ],
    )
    def test_takes_the_newest_of_the_smallest_line(self, ids, chosen):
        assert ADAPTER.cheapest_model([{"id": model_id, "displayName": model_id} for model_id in ids]) == chosen
