"""The simulator answers as the API does: whole and streamed, with thinking, tools, images and limits."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import pytest

from rensei.simulator.server import RunningSimulator
from tests.simulator.doc_tables import image_block, make_image

LOOK: dict[str, Any] = {
    "name": "look",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}


def create(client: anthropic.Anthropic, content: Any, **fields: Any) -> anthropic.types.Message:
    fields = {"model": "claude-opus-4-8", "max_tokens": 1000, **fields}
    return client.messages.create(messages=[{"role": "user", "content": content}], **fields)


def stream_raw(client: anthropic.Anthropic, content: Any, **fields: Any) -> list[Any]:
    fields = {"model": "claude-opus-4-8", "max_tokens": 1000, **fields}
    return list(client.messages.create(messages=[{"role": "user", "content": content}], stream=True, **fields))


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


class TestReply:
    def test_names_the_model_and_the_prompt(self, client: anthropic.Anthropic) -> None:
        message = create(client, "Hi there.", output_config={"effort": "low"})

        digest = hashlib.sha256(b"Hi there.").hexdigest()[:12]
        assert text_of(message) == (
            "This is the Anthropic simulator, answering as claude-opus-4-8.\n"
            f"The prompt has 7 tokens and the digest {digest}.\n"
            "The effort is low."
        )
        assert message.stop_reason == "end_turn"

    def test_is_the_same_for_the_same_request(self, client: anthropic.Anthropic) -> None:
        first, second = create(client, "Hi."), create(client, "Hi.")

        assert first.content == second.content
        assert first.usage == second.usage
        assert first.id != second.id

    def test_has_as_many_words_and_tokens_as_asked(self, client: anthropic.Anthropic) -> None:
        message = create(client, "[[reply 200 words]]")

        assert len(text_of(message).split()) == 200
        assert message.usage.output_tokens == 200

    def test_is_cut_at_max_tokens(self, client: anthropic.Anthropic) -> None:
        message = create(client, "[[reply 200 words]]", max_tokens=50)

        assert message.stop_reason == "max_tokens"
        assert message.usage.output_tokens == 50

    def test_is_cut_at_the_context_window(self, client: anthropic.Anthropic) -> None:
        message = create(client, "word " * 199_990 + "[[reply 500 words]]", model="claude-haiku-4-5", max_tokens=1000)

        assert message.stop_reason == "model_context_window_exceeded"
        assert message.usage.input_tokens + message.usage.output_tokens == 200_000

    def test_is_cut_at_a_stop_sequence(self, client: anthropic.Anthropic) -> None:
        message = create(client, "[[echo one two three]]", stop_sequences=["two"])

        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "two")
        assert text_of(message) == "one "

    def test_is_cut_at_max_tokens_before_a_stop_sequence(self, client: anthropic.Anthropic) -> None:
        message = create(client, "[[echo one two six]]", stop_sequences=["six"], max_tokens=1)

        assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
        assert message.usage.output_tokens == 1

    def test_stops_for_the_reason_that_was_asked_for(self, client: anthropic.Anthropic) -> None:
        assert create(client, "[[stop refusal]]").stop_reason == "refusal"

    def test_describes_each_image(self, client: anthropic.Anthropic) -> None:
        png, jpeg = make_image(56, 29), make_image(30, 30, form="JPEG")

        message = create(client, [image_block(png), image_block(jpeg, media_type="image/jpeg")])

        png_digest, jpeg_digest = (hashlib.sha256(data).hexdigest() for data in (png, jpeg))
        assert f"Image 1 is image/png {len(png)} bytes 56x29 sha256={png_digest}." in text_of(message)
        assert f"Image 2 is image/jpeg {len(jpeg)} bytes 30x30 sha256={jpeg_digest}." in text_of(message)
        assert message.usage.input_tokens == 4 + 2 * 2 + 2 * 2

    def test_conforms_to_a_schema(self, client: anthropic.Anthropic) -> None:
        schema = {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
        }

        message = create(client, "Hi.", output_config={"format": {"type": "json_schema", "schema": schema}})

        assert json.loads(text_of(message)) == {"ok": True, "tags": ["a"]}

    def test_explains_a_refusal(self, client: anthropic.Anthropic) -> None:
        message = create(client, "[[stop refusal]]")

        assert message.stop_details is not None
        assert message.stop_details.type == "refusal"

    def test_calls_a_forced_tool(self, client: anthropic.Anthropic) -> None:
        message = create(client, "Hi.", tools=[LOOK], tool_choice={"type": "tool", "name": "look"})

        assert message.stop_reason == "tool_use"
        assert message.content[0].type == "tool_use"
        assert message.content[0].input == {"city": "example", "days": 1}

    def test_goes_on_after_a_tool_result(self, client: anthropic.Anthropic) -> None:
        call = create(client, "[[use look]]", tools=[LOOK]).content[0]
        assert call.type == "tool_use"

        message = client.messages.create(
            model="claude-opus-4-8",
            max_tokens=100,
            tools=[LOOK],
            messages=[
                {"role": "user", "content": "[[use look]]"},
                {"role": "assistant", "content": [call]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}]},
            ],
        )

        assert message.stop_reason == "end_turn"

    def test_of_a_prewarming_request_is_empty(self, client: anthropic.Anthropic) -> None:
        message = create(client, "Hi.", max_tokens=0)

        assert message.content == []
        assert message.usage.output_tokens == 0

    def test_carries_the_headers_of_the_api(self, client: anthropic.Anthropic) -> None:
        answer = client.messages.with_raw_response.create(
            model="claude-opus-4-8", max_tokens=10, messages=[{"role": "user", "content": "Hi."}]
        )

        assert answer.headers["request-id"].startswith("req_")
        assert answer.headers["anthropic-organization-id"]
        assert int(answer.headers["anthropic-ratelimit-requests-remaining"]) > 0


class TestThinking:
    @pytest.mark.parametrize(
        ("model", "fields", "tokens"),
        [
            ("claude-opus-4-8", {}, 0),
            ("claude-opus-4-8", {"thinking": {"type": "adaptive"}}, 64),
            ("claude-opus-4-8", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, 128),
            ("claude-opus-5-5", {}, 32),
            ("claude-sonnet-5-5", {"thinking": {"type": "between_tools"}}, 0),
            ("claude-haiku-4-5", {"thinking": {"type": "enabled", "budget_tokens": 2048}, "max_tokens": 4000}, 128),
        ],
    )
    def test_is_output_that_is_told_apart(
        self, client: anthropic.Anthropic, model: str, fields: dict[str, Any], tokens: int
    ) -> None:
        usage = create(client, "[[reply 10 words]]", model=model, **fields).usage

        assert usage.output_tokens_details is not None
        assert usage.output_tokens_details.thinking_tokens == tokens
        assert usage.output_tokens == tokens + 10

    def test_is_omitted_or_summarized_as_asked(self, client: anthropic.Anthropic) -> None:
        hidden = create(client, "Hi.", thinking={"type": "adaptive"}).content[0]
        shown = create(client, "Hi.", thinking={"type": "adaptive", "display": "summarized"}).content[0]

        assert hidden.type == shown.type == "thinking"
        assert hidden.thinking == ""
        assert shown.thinking

    def test_may_leave_no_room_for_text(self, client: anthropic.Anthropic) -> None:
        message = create(client, "Hi.", model="claude-haiku-5-5", max_tokens=16)

        assert [block.type for block in message.content] == ["thinking"]
        assert message.stop_reason == "max_tokens"

    def test_is_taken_back_only_from_the_key_that_got_it(self, make_client: Callable[..., anthropic.Anthropic]) -> None:
        mine, other = make_client(), make_client()
        thought = create(mine, "Hi.", thinking={"type": "adaptive"}).content
        turns: list[Any] = [
            {"role": "user", "content": "Hi."},
            {"role": "assistant", "content": thought},
            {"role": "user", "content": "Go on."},
        ]

        accepted = mine.messages.create(model="claude-opus-4-8", max_tokens=99, messages=turns)
        with pytest.raises(anthropic.BadRequestError, match="Invalid `signature`"):
            other.messages.create(model="claude-opus-4-8", max_tokens=99, messages=turns)

        assert accepted.stop_reason == "end_turn"


class TestStream:
    def test_has_the_same_message_as_the_plain_answer(self, client: anthropic.Anthropic) -> None:
        fields: dict[str, Any] = {
            "thinking": {"type": "adaptive", "display": "summarized"},
            "messages": [{"role": "user", "content": "A  question\nin two lines. [[use look]]"}],
            "tools": [LOOK],
            "model": "claude-opus-4-8",
            "max_tokens": 1000,
        }

        plain = client.messages.create(**fields)
        with client.messages.stream(**fields) as events:
            streamed = events.get_final_message()

        for left, right in zip(plain.content, streamed.content, strict=True):
            assert left.to_dict() == right.to_dict(exclude_unset=True) | {"type": left.type}
        assert streamed.usage == plain.usage
        assert streamed.stop_reason == plain.stop_reason

    def test_keeps_all_white_space(self, client: anthropic.Anthropic) -> None:
        text = "two  spaces,\n\na blank line\tand a tab"

        with client.messages.stream(
            model="claude-opus-4-8", max_tokens=99, messages=[{"role": "user", "content": f"[[echo {text}]]"}]
        ) as events:
            assert text_of(events.get_final_message()) == text

    def test_sends_every_kind_of_event_in_order(self, client: anthropic.Anthropic) -> None:
        thinking = {"type": "adaptive", "display": "summarized"}

        events = stream_raw(client, "[[use look]]", tools=[LOOK], thinking=thinking)

        order = [event.type for event in events]
        assert order[0] == "message_start"
        assert order[-2:] == ["message_delta", "message_stop"]
        assert order.count("content_block_start") == order.count("content_block_stop") == 2
        deltas = {event.delta.type for event in events if event.type == "content_block_delta"}
        assert deltas == {"thinking_delta", "signature_delta", "input_json_delta"}

    def test_cites_documents_that_may_be_cited(self, client: anthropic.Anthropic) -> None:
        source = {"type": "text", "media_type": "text/plain", "data": "The sky is blue."}
        document = {"type": "document", "source": source, "title": "Sky", "citations": {"enabled": True}}

        events = stream_raw(client, [document, {"type": "text", "text": "What colour?"}])

        [citation] = [
            event.delta.citation
            for event in events
            if event.type == "content_block_delta" and event.delta.type == "citations_delta"
        ]
        assert (citation.type, citation.cited_text, citation.document_title) == (
            "char_location",
            "The sky is blue.",
            "Sky",
        )

    def test_pings(self, http: httpx2.Client, key: str) -> None:
        body = {
            "model": "claude-opus-4-8",
            "max_tokens": 9,
            "stream": True,
            "messages": [{"role": "user", "content": "Hi."}],
        }
        headers = {"authorization": f"Bearer {key}", "anthropic-version": "2026-10-21"}

        answer = http.post("/v1/messages", headers=headers, json=body)

        assert answer.headers["content-type"].startswith("text/event-stream")
        assert 'event: ping\ndata: {"type": "ping"}\n\n' in answer.text

    def test_tells_the_input_first_and_the_output_last(self, client: anthropic.Anthropic) -> None:
        events = stream_raw(client, "[[reply 30 words]]")

        start, end = events[0].message.usage, events[-2].usage
        assert (start.input_tokens, start.output_tokens) == (9, 1)
        assert start.cache_creation is not None
        assert (end.input_tokens, end.output_tokens) == (9, 30)
        assert "cache_creation" not in end.to_dict()

    def test_arrives_while_it_is_made(self, client: anthropic.Anthropic, simulator: RunningSimulator) -> None:
        stream = client.messages.create(
            model="claude-opus-4-8",
            max_tokens=99,
            stream=True,
            messages=[{"role": "user", "content": "[[reply 90 words]] [[slow 0.1]]"}],
        )

        next(iter(stream))

        assert simulator.requests()[0]["ended_at"] is None
        stream.close()
