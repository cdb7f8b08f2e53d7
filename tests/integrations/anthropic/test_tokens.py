"""
The local counts of tokens.

That the lower bound holds for Anthropic's own tokenizers cannot be proven here, as they are not public; what can is
that it holds for every tokenizer with the two properties that it is built on. The simulator's is one.
"""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrations.providers.anthropic.tokens import tokens_about_text, tokens_at_least
from rensei.simulator.tokens import count_text

PROSE = "Rensei decides, for every call to a language model, whose credential signs it, who pays, and where it runs. "


def _params(text: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}]}


class TestTokensAtLeast:
    @given(text=st.text(max_size=400) | st.text(alphabet="ab =\n\t—漢🙂", max_size=400))
    def test_is_never_above_a_count_by_words_and_bytes(self, text):
        assert tokens_at_least(_params(text)) <= count_text(text)

    @pytest.mark.parametrize(
        ("text", "count"),
        [("", 0), ("word " * 1000, 1000), ("=" * 5000, 1), (" \n" * 5000, 0), ("漢" * 160, 1), ("漢字" * 80, 30)],
    )
    def test_counts_words_and_what_is_too_long_for_one_token(self, text, count):
        assert tokens_at_least(_params(text)) == count

    def test_is_at_least_half_of_a_count_of_prose(self):
        assert tokens_at_least(_params(PROSE * 10)) >= count_text(PROSE * 10) / 2

    def test_sees_every_part_of_a_request(self):
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x" * 10_000}}
        params = {
            "system": [{"type": "text", "text": "one two"}],
            "tools": [{"name": "three", "description": "abcdefgh " * 4, "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": [image, {"type": "text", "text": "four five six"}]},
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "t", "name": "three", "input": {"a": "bcdefgh " * 3}}],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t", "content": "seven eight"},
                        {"type": "search_result", "content": [{"type": "text", "text": "nine"}]},
                        {"type": "document", "source": {"type": "text", "data": "ten eleven"}},
                    ],
                },
            ],
        }

        assert tokens_at_least(params) == 2 + 4 + 1 + 3 + 2 + 2 + 1 + 2

    def test_is_quick_for_the_largest_body(self):
        text = PROSE * (8 * 1024 * 1024 // len(PROSE))
        began = time.process_time()

        tokens_at_least(_params(text))

        assert time.process_time() - began < 3


class TestTokensAboutText:
    def test_is_near_what_newer_models_count_for_prose(self):
        # About three bytes for each token; the simulator's four letters and free spaces are near as well.
        assert tokens_about_text(PROSE) == pytest.approx(len(PROSE) / 3, abs=1)
