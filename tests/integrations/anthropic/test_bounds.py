"""
The bounds of a request: never above, never below what is counted.

That they hold for Anthropic's own tokenizers cannot be proven here, as those are not public. What can is that they hold
for every tokenizer with the properties that they are built on; the simulator's is one.
"""

import json
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integrations.providers.anthropic import bounds
from integrations.providers.anthropic.bounds import TOKENS_PER_IMAGE_MAX, PromptBounds
from rensei.simulator.model_facts import find_model
from rensei.simulator.prompt_cache import cut_prompt
from tests.integrations.anthropic import bodies

WINDOW = 1_000_000
MODEL = find_model("claude-opus-5-5")
WORDS = "word " * 8000


def _counted(body: dict[str, Any]) -> int:
    assert MODEL is not None
    return cut_prompt(body, model=MODEL, key_sha256="")[-1].tokens_up_to_here


def _ask(*blocks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}], **fields}


def _most(*blocks: dict[str, Any], window: int | None = WINDOW, **fields: Any) -> int:
    return PromptBounds(_ask(*blocks, **fields), window=window).at_most


class TestBounds:
    @given(body=bodies.any_bodies, escaped=st.booleans())
    @settings(max_examples=bodies.NUMBER, deadline=None, suppress_health_check=list(HealthCheck))
    def test_hold_for_every_body(self, body: dict[str, Any], escaped: bool) -> None:
        raw = json.dumps(body, ensure_ascii=escaped).encode(errors="surrogatepass")
        counted = _counted(body)

        sent = PromptBounds(json.loads(raw), raw=raw, window=WINDOW)
        built = PromptBounds(body, window=WINDOW)

        assert sent.at_least <= counted
        assert min(counted, WINDOW) <= sent.at_most
        assert min(counted, WINDOW) <= built.at_most

    @given(body=bodies.valid_bodies)
    @settings(max_examples=max(20, bodies.NUMBER // 10), deadline=None, suppress_health_check=list(HealthCheck))
    def test_hold_for_what_a_server_counts(self, simulator_process: Any, make_key: Any, body: dict[str, Any]) -> None:
        bounds = PromptBounds(body, window=WINDOW)

        answer = httpx2.post(
            f"{simulator_process.url}/v1/messages/count_tokens",
            json=body,
            headers={"x-api-key": make_key(), "anthropic-version": "2023-06-01"},
        )

        assert answer.status_code == 200, answer.text
        assert bounds.at_least <= answer.json()["input_tokens"] <= bounds.at_most

    @given(value=bodies.values)
    @settings(max_examples=100, deadline=None)
    def test_take_anything_for_a_body(self, value: Any) -> None:
        for name in ("messages", "system", "tools", "output_config", "context_management"):
            for body in ({name: value}, {"messages": [{"content": [{"type": value, name: value}]}]}):
                bounds = PromptBounds(body, window=WINDOW)

                assert 0 <= bounds.at_least <= bounds.at_most
                bounds.of_call(max_tokens=1, max_output_tokens=None)


class TestAtMost:
    @pytest.mark.parametrize(
        "block",
        [
            {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": WORDS}]},
            {"type": "web_search_tool_result", "content": [{"encrypted_content": WORDS}]},
            {"type": "web_fetch_tool_result", "content": {"content": {"type": "document", "source": {"data": WORDS}}}},
            {"type": "redacted_thinking", "data": WORDS},
            {"type": "compaction", "content": WORDS},
            {"type": "made_up", "anything": {"nested": [WORDS]}},
        ],
        ids=lambda block: str(block["type"]),
    )
    def test_counts_what_a_text_of_that_length_counts(self, block: dict[str, Any]) -> None:
        assert _most(block) >= len(WORDS)

    def test_counts_the_schema_of_a_structured_answer(self) -> None:
        schema = {"type": "object", "description": WORDS}

        assert _most(output_config={"format": {"type": "json_schema", "schema": schema}}) >= len(WORDS)

    def test_counts_an_image_by_its_size_and_not_by_its_bytes(self) -> None:
        image = {"type": "image", "source": {"type": "base64", "data": "A" * 500_000}}

        assert TOKENS_PER_IMAGE_MAX <= _most(image) < TOKENS_PER_IMAGE_MAX + 200

    @pytest.mark.parametrize(
        "block",
        [
            {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}},
            {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
            {"type": "tool_result", "content": [{"type": "document", "source": {"type": "made_up"}}]},
            {"type": "container_upload", "file_id": "file_1"},
            {"type": "made_up", "parts": [{"url": "https://example.com"}]},
            {"type": "made_up", "clip": {"media_type": "video/mp4", "data": "AAAA"}},
            {"type": "made_up", "conversation_id": "conv_1"},
            {"type": "search_result", "content": [{"type": "document", "source": {"type": "url"}}]},
        ],
        ids=["url", "file", "pdf", "nested", "upload", "made up url", "made up media", "made up id", "in a result"],
    )
    def test_counts_what_is_elsewhere_or_packed_as_the_whole_window(self, block: dict[str, Any]) -> None:
        assert _most(block) == WINDOW

    @pytest.mark.parametrize(
        "fields",
        [
            {"thread": {"type": "continue"}},
            {"made_up": 1},
            {"tools": [{"type": "made_up_20990101"}]},
            {"tools": [{"type": "memory_20990101"}]},
            {"messages": [{"role": "user", "content": "Hi.", "attachments": [{"url": "https://example.com"}]}]},
            {"system": [{"type": "text", "text": "Hi.", "file_id": "file_1"}]},
        ],
        ids=["thread", "field", "tool", "date of a tool", "member of a message", "member of a block"],
    )
    def test_counts_what_brings_in_anything_as_the_whole_window(self, fields: dict[str, Any]) -> None:
        assert _most(**fields) == WINDOW

    def test_is_never_more_than_the_window(self) -> None:
        assert _most({"type": "text", "text": WORDS}, window=1000) == 1000

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(body=bodies.any_bodies, window=st.one_of(st.none(), st.integers(1, 5000)))
    def test_for_another_window_is_that_of_a_new_count(self, body: dict[str, Any], window: int | None) -> None:
        first = PromptBounds(body, window=WINDOW)
        assert first.at_most <= WINDOW

        assert first.for_window(window).at_most == PromptBounds(body, window=window).at_most
        assert first.at_most == PromptBounds(body, window=WINDOW).at_most

    def test_for_another_window_counts_nothing_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = PromptBounds(_ask({"type": "text", "text": "é" * 50}), window=WINDOW)
        counted = first.at_most
        # The name in that module alone: pytest normalizes texts too.
        monkeypatch.setattr(bounds, "unicodedata", None)

        assert first.for_window(2 * WINDOW).at_most == counted

    def test_holds_where_the_window_is_not_known(self) -> None:
        assert _most({"type": "document", "source": {"type": "url"}}, window=None) == 3_000_000

    @pytest.mark.parametrize("escaped", [False, True], ids=["plain", "escaped"])
    def test_counts_what_a_normalizing_tokenizer_makes_longer(self, escaped: bool) -> None:
        body = _ask({"type": "text", "text": "ﷺ" * 1000})
        raw = json.dumps(body, ensure_ascii=escaped).encode()

        assert PromptBounds(body, raw=raw, window=WINDOW).at_most >= 33 * 1000


class TestAtLeast:
    @pytest.mark.parametrize(
        "body",
        [
            _ask({"type": "thinking", "thinking": WORDS}),
            _ask({"type": "made_up", "text": WORDS}, {"type": "text", "text": WORDS}),
            _ask({"type": "text", "text": WORDS}, {"type": "compaction", "content": "short"}),
            _ask({"type": "text", "text": WORDS}, context_management={"edits": [{"type": "clear_tool_uses_20250919"}]}),
            _ask(tools=[{"name": "t", "description": WORDS, "defer_loading": True}]),
            {"messages": [{"role": "system", "content": WORDS}]},
        ],
        ids=["thinking", "made up", "compacted", "cleared", "deferred", "system"],
    )
    def test_counts_nothing_that_the_api_may_leave_out(self, body: dict[str, Any]) -> None:
        assert PromptBounds(body, window=WINDOW).at_least == 0
