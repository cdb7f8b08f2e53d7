"""The pieces that need no server."""

import io
import os
import signal
import sys

import pytest

from rensei.cli.commands.worker import _Stop
from rensei.cli.errors import Refused
from rensei.cli.events import read_events
from rensei.cli.machine import claude_code
from rensei.cli.machine.answer import REPORTS_MAX, Answer
from rensei.cli.machine.runners import CallFailed
from rensei.cli.output import Output, clean, show
from rensei.cli.session import check_url

pytestmark = pytest.mark.outside


class TestReadEvents:
    def test_puts_lines_together_and_skips_comments(self):
        lines = [": still here", "", "id: 3", "event: delta", 'data: {"text": "a: b"}', "", "id: 4", "event: cut"]

        (event,) = read_events(lines)

        assert (event.id, event.kind, event.data) == ("3", "delta", {"text": "a: b"})


class TestClean:
    @pytest.mark.parametrize("hostile", ["\x1b[2Jgone", "\x1b]0;title\x07gone", "\x9b31mgone", "gone\x08\x08"])
    def test_leaves_nothing_that_steers_a_terminal(self, hostile):
        assert not set(clean(hostile)) & set("\x1b\x07\x08\x9b")

    def test_leaves_lines_and_letters(self):
        assert clean("Zwölf\n\tBoxkämpfer 🥊") == "Zwölf\n\tBoxkämpfer 🥊"


class TestShow:
    @pytest.mark.parametrize(
        ("value", "shown"),
        [(None, "–"), (True, "yes"), (["a", "b"], "a, b"), ("2026-11-23T07:00:00.123456Z", "2026-11-23 07:00:00")],
    )
    def test_writes_values_for_people(self, value, shown):
        assert show(value) == shown


class InterruptedWrite(io.RawIOBase):
    """A file descriptor whose write is interrupted by Ctrl-C."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        signal.raise_signal(signal.SIGINT)
        return os.write(self._descriptor, data)


class TestStop:
    def test_answers_ctrl_c_in_the_middle_of_a_message(self, monkeypatch):
        reader, writer = os.pipe()
        earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        output = Output(as_json=False)
        try:
            stop = _Stop(output)
            stderr = io.TextIOWrapper(io.BufferedWriter(InterruptedWrite(writer)))
            monkeypatch.setattr(sys, "stderr", stderr)
            output.note("The run has ended.")
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
            monkeypatch.undo()
        stderr.detach()
        os.close(writer)
        with os.fdopen(reader) as written:
            assert sorted(written.read().splitlines()) == ["Stopping, which takes a few seconds.", "The run has ended."]
        assert stop.asked


class TestCheckUrl:
    def test_brings_an_address_into_one_form(self):
        assert check_url("https://rensei.example/api/v1/") == "https://rensei.example"

    @pytest.mark.parametrize(
        "url", ["rensei.example", "ftp://rensei.example", "https://ada:pw@rensei.example", "https://"]
    )
    def test_refuses_what_is_none_of_a_web_server(self, url):
        with pytest.raises(Refused, match="not one of a web server"):
            check_url(url)


class TestAnswer:
    def events(self):
        usage = {
            "input_tokens": 10,
            "output_tokens": 1,
            "cache_creation_input_tokens": 7,
            "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
        }
        yield {"type": "message_start", "message": {"usage": usage}}
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}}
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}}
        yield {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}
        yield {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Yes"}}
        yield {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "."}}
        details = {"thinking_tokens": 5}
        usage = {"output_tokens": 9, "input_tokens": None, "output_tokens_details": details}
        yield {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
        yield {"type": "message_stop"}

    def test_puts_text_content_and_usage_together(self):
        answer = Answer()

        texts = [answer.take(event) for event in self.events()]

        assert "".join(texts) == answer.text == "Yes."
        assert answer.content()[0] == {"type": "thinking", "thinking": "Hm.", "signature": "s"}
        assert (answer.stop_reason, answer.is_complete) == ("end_turn", True)
        assert answer.usage() == {
            "inputTokens": 10,
            "outputTokens": 9,
            "cacheReadTokens": 0,
            "thinkingTokens": 5,
            "cacheWrite1hTokens": 4,
            "cacheWrite5mTokens": 3,
        }

    def test_passes_on_the_model_and_each_report_unchanged(self):
        answer, fresh = Answer(), Answer()
        start = {"input_tokens": 9, "new": {"x": 1}}
        answer.take({"type": "message_start", "message": {"model": "m" * 200, "usage": start}})
        for number in range(40):
            answer.take({"type": "message_delta", "usage": {"output_tokens": number}})
        answer.take({"type": "message_delta", "usage": None})

        told = answer.told()
        fresh.take({"type": "message_start", "message": {}})

        assert (told["model"], told["reports"][0], len(told["reports"])) == ("m" * 128, start, REPORTS_MAX)
        assert told["reports"][-1] == {"output_tokens": 39}
        assert fresh.told() is None

    def test_keeps_what_a_later_report_tells_less_of(self):
        answer = Answer()
        for event in [
            {"type": "message_start", "message": {"usage": {"input_tokens": 1000, "output_tokens": 1}}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 0}},
            {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 500}},
            {"type": "message_delta", "usage": {"output_tokens": 0}},
            {"type": "message_delta", "delta": None, "usage": None},
        ]:
            answer.take(event)

        assert answer.stop_reason == "end_turn"
        assert answer.usage()["inputTokens"] == 1000
        assert answer.usage()["outputTokens"] == 500

    @pytest.mark.parametrize("kind", ["message_start", "message_delta", "content_block_start", "content_block_delta"])
    @pytest.mark.parametrize("members", [{}, {"message": 1, "delta": [], "usage": "x", "content_block": 2, "index": 0}])
    def test_takes_any_event(self, kind, members):
        assert Answer().take({"type": kind, **members}) == ""

    def test_puts_a_first_try_aside(self):
        answer = Answer()
        for event in [*list(self.events())[:6], *self.events()]:
            answer.take(event)

        assert answer.text == "Yes."


class TestClaudeCode:
    REQUEST = {"model": "claude-sonnet-5-5", "max_tokens": 10, "messages": [{"role": "user", "content": "Hello"}]}

    @pytest.mark.parametrize(
        "more",
        [
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            {"tools": [{"name": "x"}]},
            {"output_config": {"format": {"type": "json_schema"}}},
            {"temperature": 0.1},
        ],
    )
    def test_refuses_what_it_cannot_honour(self, more):
        with pytest.raises(CallFailed) as failure:
            claude_code.ClaudeCode().start({**self.REQUEST, **more}, attempt_id="att_1")

        assert (failure.value.code, failure.value.sent) == ("PROVIDER_REJECTED", False)

    def test_knows_a_version_that_does_not_take_its_options(self):
        failure = claude_code.ClaudeCode().silent_failure("error: unknown option '--effort'")

        assert "Update it" in failure.fix
        assert failure.sent is False
