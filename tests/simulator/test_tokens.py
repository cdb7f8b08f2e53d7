"""The simulator counts by a rule that can be worked out by hand."""

from typing import Any

import anthropic
import pytest

from rensei.simulator.model_facts import Model, find_model
from rensei.simulator.tokens import count_image, count_text


def facts(name: str) -> Model:
    model = find_model(name)
    assert model is not None
    return model


class TestCountText:
    @pytest.mark.parametrize(
        ("text", "tokens"),
        [("", 0), ("  \n ", 0), ("word", 1), ("words", 2), ("word " * 1000, 1000), ("ééé", 2), ("a b\nc\td", 4)],
    )
    def test_costs_one_for_each_four_bytes_of_a_word(self, text: str, tokens: int) -> None:
        assert count_text(text) == tokens


class TestCountImage:
    @pytest.mark.parametrize(
        ("model", "width", "height", "tokens"),
        [
            ("claude-haiku-4-5", 28, 28, 1),
            ("claude-haiku-4-5", 29, 28, 2),
            ("claude-haiku-4-5", 560, 560, 400),
            ("claude-opus-5-5", 1932, 1932, 4761),
        ],
    )
    def test_is_patches_of_28_pixels(self, model: str, width: int, height: int, tokens: int) -> None:
        assert count_image(width=width, height=height, model=facts(model)) == tokens

    @pytest.mark.parametrize(("model", "tokens_max"), [("claude-haiku-4-5", 1568), ("claude-opus-5-5", 4784)])
    @pytest.mark.parametrize(("width", "height"), [(8000, 8000), (8000, 100), (3000, 2000), (100, 7000)])
    def test_never_passes_the_limit_of_the_model(self, model: str, tokens_max: int, width: int, height: int) -> None:
        assert 0 < count_image(width=width, height=height, model=facts(model)) <= tokens_max


class TestCountTokens:
    @pytest.mark.parametrize("tokens", [99_000, 100_001])
    def test_can_be_hit_exactly(self, client: anthropic.Anthropic, tokens: int) -> None:
        text = "word " * (tokens - 4)

        counted = client.messages.count_tokens(model="claude-opus-4-8", messages=[{"role": "user", "content": text}])

        assert counted.input_tokens == tokens

    def test_agrees_with_the_usage_of_a_message(self, client: anthropic.Anthropic) -> None:
        request: dict[str, Any] = {
            "model": "claude-opus-4-8",
            "system": "Be brief and kind.",
            "tools": [{"name": "look", "description": "Look.", "input_schema": {"type": "object"}}],
            "messages": [
                {"role": "user", "content": "Hi."},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": [{"type": "text", "text": "Well?"}]},
            ],
        }

        counted = client.messages.count_tokens(**request)
        message = client.messages.create(max_tokens=9, **request)

        assert counted.input_tokens == message.usage.input_tokens
