"""The simulator keeps a prompt cache with the rules of the API."""

from collections.abc import Callable
from typing import Any

import anthropic
import pytest

from rensei.simulator.model_facts import find_model
from rensei.simulator.prompt_cache import PromptCache, PromptUsage, cut_prompt

MakeClient = Callable[..., anthropic.Anthropic]
LONG = "word " * 2000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> PromptCache:
    return PromptCache(clock=clock)


def use(cache: PromptCache, body: dict[str, Any], *, key: str = "a", model_id: str = "claude-opus-4-8") -> PromptUsage:
    model = find_model(model_id)
    assert model is not None
    return cache.use(cut_prompt(body, model=model, key_sha256=key), model=model)


def marked(text: str, ttl: str = "5m") -> dict[str, Any]:
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": ttl}}


def asking(text: str = "Hi.", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


class TestPromptCache:
    def test_writes_once_and_then_reads(self, cache: PromptCache) -> None:
        body = asking(system=[marked(LONG)])

        assert use(cache, body) == PromptUsage(input_tokens=5, written_5m_tokens=2000)
        assert use(cache, body) == PromptUsage(input_tokens=5, read_tokens=2000)

    def test_reads_the_prefix_of_another_question(self, cache: PromptCache) -> None:
        use(cache, asking("One?", system=[marked(LONG)]))

        assert use(cache, asking("Two?", system=[marked(LONG)])).read_tokens == 2000

    def test_caches_nothing_without_a_breakpoint(self, cache: PromptCache) -> None:
        use(cache, asking(system=LONG))

        assert use(cache, asking(system=LONG)) == PromptUsage(input_tokens=2005)

    def test_caches_nothing_below_the_minimum(self, cache: PromptCache) -> None:
        body = asking(system=[marked("word " * 1023)])
        use(cache, body)

        assert use(cache, body) == PromptUsage(input_tokens=1028)

    def test_caches_from_the_minimum_on(self, cache: PromptCache) -> None:
        body = asking(system=[marked("word " * 1024)])
        use(cache, body)

        assert use(cache, body).read_tokens == 1024

    def test_has_the_minimum_of_each_model(self, cache: PromptCache) -> None:
        body = asking(system=[marked(LONG)])

        assert use(cache, body, model_id="claude-opus-4-6").written_5m_tokens == 0
        assert use(cache, body, model_id="claude-opus-5-5").written_5m_tokens == 2000

    def test_keeps_keys_apart(self, cache: PromptCache) -> None:
        use(cache, asking(system=[marked(LONG)]), key="a")

        assert use(cache, asking(system=[marked(LONG)]), key="b").read_tokens == 0

    def test_keeps_models_apart(self, cache: PromptCache) -> None:
        use(cache, asking(system=[marked(LONG)]))

        assert use(cache, asking(system=[marked(LONG)]), model_id="claude-opus-5").read_tokens == 0

    def test_forgets_after_five_minutes(self, cache: PromptCache, clock: Clock) -> None:
        use(cache, asking(system=[marked(LONG)]))
        clock.now = 300

        assert use(cache, asking(system=[marked(LONG)])).read_tokens == 0

    def test_remembers_for_longer_when_read(self, cache: PromptCache, clock: Clock) -> None:
        for clock.now in (0.0, 299.0, 598.0):
            usage = use(cache, asking(system=[marked(LONG)]))

        assert usage.read_tokens == 2000

    def test_remembers_every_marked_prefix_for_longer_when_read(self, cache: PromptCache, clock: Clock) -> None:
        both = asking(system=[marked(LONG), marked("more " * 500)])
        for clock.now in (0.0, 299.0):
            use(cache, both)
        clock.now = 598.0

        assert use(cache, asking(system=[marked(LONG)])).read_tokens == 2000

    def test_remembers_for_an_hour_where_asked(self, cache: PromptCache, clock: Clock) -> None:
        assert use(cache, asking(system=[marked(LONG, "1h")])).written_1h_tokens == 2000
        clock.now = 3599

        assert use(cache, asking(system=[marked(LONG, "1h")])).read_tokens == 2000
        clock.now = 3599 + 3600

        assert use(cache, asking(system=[marked(LONG, "1h")])).read_tokens == 0

    def test_splits_what_it_writes_by_time_to_live(self, cache: PromptCache) -> None:
        usage = use(cache, asking(system=[marked(LONG, "1h"), marked("more " * 500, "5m")]))

        assert usage == PromptUsage(input_tokens=5, written_1h_tokens=2000, written_5m_tokens=500)

    def test_extends_what_it_has_as_a_conversation_grows(self, cache: PromptCache) -> None:
        automatic = {"cache_control": {"type": "ephemeral"}}
        first: list[Any] = [{"role": "user", "content": LONG}]
        second = [*first, {"role": "assistant", "content": "Well."}, {"role": "user", "content": "Go on."}]

        assert use(cache, {"messages": first, **automatic}).written_5m_tokens == 2004
        usage = use(cache, {"messages": second, **automatic})

        assert (usage.read_tokens, usage.written_5m_tokens, usage.input_tokens) == (2004, 12, 0)

    def test_does_not_look_back_further_than_twenty_blocks(self, cache: PromptCache) -> None:
        turns: list[Any] = [{"role": "user", "content": "Hi."}] * 21
        use(cache, {"system": [marked(LONG)], "messages": [{"role": "user", "content": "Hi."}]})

        far = [*turns[:-1], {"role": "user", "content": [marked("Hi.")]}]
        near = [*turns[:-2], {"role": "user", "content": [marked("Hi.")]}]

        assert use(cache, {"system": LONG, "messages": far}).read_tokens == 0
        assert use(cache, {"system": LONG, "messages": near}).read_tokens == 2000

    @pytest.mark.parametrize(
        "change",
        [{"thinking": {"type": "adaptive"}}, {"output_config": {"effort": "low"}}, {"tool_choice": {"type": "none"}}],
    )
    def test_keeps_the_system_but_not_the_messages_when_settings_change(
        self, cache: PromptCache, change: dict[str, Any]
    ) -> None:
        body = {"system": [marked(LONG)], "messages": [{"role": "user", "content": [marked(LONG)]}]}
        use(cache, body)

        usage = use(cache, {**body, **change})

        assert (usage.read_tokens, usage.written_5m_tokens) == (2000, 2004)

    def test_keeps_nothing_when_tools_change(self, cache: PromptCache) -> None:
        use(cache, asking(system=[marked(LONG)]))

        usage = use(cache, asking(system=[marked(LONG)], tools=[{"name": "look", "input_schema": {}}]))

        assert usage.read_tokens == 0

    def test_loses_no_token(self, cache: PromptCache) -> None:
        body = asking(LONG, system=[marked(LONG, "1h"), marked("more " * 700)], cache_control={"type": "ephemeral"})

        assert [use(cache, body).total for _ in range(3)] == [4704] * 3


class TestCachedMessage:
    def test_reports_writes_and_then_reads(self, client: anthropic.Anthropic) -> None:
        request: dict[str, Any] = {
            "model": "claude-opus-4-8",
            "max_tokens": 9,
            "system": [marked(LONG, "1h")],
            "messages": [{"role": "user", "content": "Hi."}],
        }

        first, second = client.messages.create(**request).usage, client.messages.create(**request).usage

        assert (first.cache_creation_input_tokens, first.cache_read_input_tokens) == (2000, 0)
        assert first.cache_creation is not None
        assert first.cache_creation.ephemeral_1h_input_tokens == 2000
        assert (second.cache_creation_input_tokens, second.cache_read_input_tokens) == (0, 2000)
        assert first.input_tokens == second.input_tokens == 5
