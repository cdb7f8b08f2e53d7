"""Cache breakpoints: where they go, and what no request may ever have."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integrations.providers.anthropic.caching import cache_writes_of, with_cache_breakpoints
from integrations.providers.anthropic.tokens import tokens_about
from rensei.core.errors import FieldError

CAPABILITIES = {"promptCaching": True, "minCacheTokens": 512}
LONG = "Think deeply. " * 400
FIVE_MINUTES = {"type": "ephemeral"}
ONE_HOUR = {"type": "ephemeral", "ttl": "1h"}


def _tool() -> dict[str, Any]:
    return {"name": "look_up", "description": LONG, "input_schema": {"type": "object"}}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _mark(params: dict[str, Any], *, caching: str = "ephemeral", **capabilities: Any) -> dict[str, Any]:
    return with_cache_breakpoints(params, prompt_caching=caching, capabilities={**CAPABILITIES, **capabilities})


def _breakpoints(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if "cache_control" in value:
            yield value["cache_control"]
        for name, inner in value.items():
            if name != "cache_control":
                yield from _breakpoints(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _breakpoints(inner)


class TestWithCacheBreakpoints:
    def test_marks_the_last_tool_the_last_system_block_and_the_last_turn(self):
        blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        turns = [_user("1"), _assistant("2"), {"role": "user", "content": copy.deepcopy(blocks)}]

        marked = _mark({"tools": [_tool(), _tool()], "system": copy.deepcopy(blocks), "messages": turns})

        assert "cache_control" not in marked["tools"][0]
        assert marked["tools"][1]["cache_control"] == FIVE_MINUTES
        assert marked["system"] == [blocks[0], {**blocks[1], "cache_control": FIVE_MINUTES}]
        assert marked["messages"][2]["content"] == [blocks[0], {**blocks[1], "cache_control": FIVE_MINUTES}]
        assert len(list(_breakpoints(marked))) == 3

    def test_marks_for_an_hour_where_the_prompt_is_static(self):
        marked = _mark({"system": LONG, "messages": [_user("1")]}, caching="static")

        assert marked["system"] == [{"type": "text", "text": LONG, "cache_control": ONE_HOUR}]

    def test_does_not_mark_a_first_turn_that_may_never_come_again(self):
        assert list(_breakpoints(_mark({"messages": [_user(LONG)]}))) == []

    @pytest.mark.parametrize("params", [{"system": "Short.", "messages": [_user("1"), _assistant("2"), _user("3")]}])
    def test_marks_nothing_below_the_models_minimum(self, params):
        assert _mark(params) == params

    def test_marks_a_part_only_from_where_the_prompt_is_long_enough(self):
        marked = _mark({"system": "Short.", "messages": [_user(LONG), _assistant("2"), _user("3")]})

        assert marked["system"] == "Short."
        assert marked["messages"][2]["content"][0]["cache_control"] == FIVE_MINUTES

    @pytest.mark.parametrize("minimum", [512, 1024, 2048, 4096])
    def test_follows_the_minimum_of_each_model(self, minimum):
        below, above = "x" * (3 * (minimum - 1)), "x" * (3 * minimum)

        assert _mark({"system": below, "messages": []}, minCacheTokens=minimum)["system"] == below
        assert _mark({"system": above, "messages": []}, minCacheTokens=minimum)["system"] != above

    @pytest.mark.parametrize(("caching", "capabilities"), [("off", {}), ("ephemeral", {"promptCaching": False})])
    def test_marks_nothing_where_caching_is_off_or_unknown_to_the_model(self, caching, capabilities):
        params = {"system": LONG, "messages": [_user("1")]}

        assert _mark(params, caching=caching, **capabilities) == params

    def test_marks_neither_thinking_nor_empty_text(self):
        last = [{"type": "text", "text": "So"}, {"type": "thinking", "thinking": "", "signature": "s"}]
        last += [{"type": "text", "text": " "}, {"type": "made_up"}]
        params = {"system": LONG, "messages": [_user("1"), _assistant("2"), {"role": "user", "content": last}]}

        marked = _mark(params)

        assert marked["messages"][2]["content"][0]["cache_control"] == FIVE_MINUTES
        assert marked["messages"][2]["content"][1:] == last[1:]

    def test_marks_what_was_asked_and_not_an_answer_begun_for_the_model(self):
        begun = [_user("1"), _assistant("2"), _user("3"), _assistant("The answer is")]

        marked = _mark({"system": LONG, "messages": begun})

        assert marked["messages"][2]["content"][0]["cache_control"] == FIVE_MINUTES
        assert marked["messages"][3] == begun[3]

    @pytest.mark.parametrize(
        "later",
        [
            {"defer_loading": True},
            {"type": "mcp_toolset", "mcp_server_name": "maps"},
            {"type": "computer_toolset_20260801", "configs": {"zoom": {"defer_loading": True}}},
            {"type": "made_up_20300101"},
            {"type": "memory_bank_20300101"},
        ],
        ids=["deferred", "toolset", "member", "unknown", "begins like a known one"],
    )
    def test_marks_the_last_tool_that_takes_it(self, later):
        last = {**_tool(), **later}

        marked = _mark({"tools": [_tool(), last], "messages": [_user("1")]})

        assert marked["tools"] == [{**_tool(), "cache_control": FIVE_MINUTES}, last]

    @pytest.mark.parametrize(
        "block",
        [
            {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "a"}]}},
            {"type": "made_up", "made_up": {"parts": [{"type": "text", "text": "a"}]}},
        ],
        ids=["source", "unknown"],
    )
    def test_adds_nothing_to_the_callers_own_however_deep(self, block):
        inner = json.loads(
            json.dumps(block).replace('"text": "a"', '"text": "a", "cache_control": {"type": "ephemeral"}')
        )
        params = {"system": LONG, "messages": [_user("1"), _assistant("2"), {"role": "user", "content": [inner]}]}

        assert _mark(params) == params

    @pytest.mark.parametrize("caching", ["ephemeral", "static", "off"])
    def test_adds_nothing_to_the_callers_own(self, caching):
        own = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "5m"}}
        params = {"tools": [_tool()], "system": LONG, "messages": [{"role": "user", "content": [own]}]}

        assert _mark(params, caching=caching) == params

    def test_adds_nothing_where_the_caller_leaves_it_to_anthropic(self):
        params = {"cache_control": {"type": "ephemeral"}, "system": LONG, "messages": [_user("1")]}

        assert _mark(params) == params

    def test_makes_an_hour_of_a_callers_static(self):
        inner = {"type": "text", "text": "c", "cache_control": {"type": "static"}}
        result = {"type": "tool_result", "tool_use_id": "t", "content": [inner]}
        own = {"type": "text", "text": "a", "cache_control": {"type": "static"}}

        marked = _mark({"system": [own], "messages": [{"role": "user", "content": [result]}]})

        assert list(_breakpoints(marked)) == [ONE_HOUR, ONE_HOUR]

    @pytest.mark.parametrize("mark", [{"type": "forever"}, {"type": "ephemeral", "ttl": "2h"}, "ephemeral", {}])
    def test_refuses_a_kind_that_there_is_not(self, mark):
        block = {"type": "text", "text": "a", "cache_control": mark}

        with pytest.raises(FieldError) as refused:
            _mark({"messages": [{"role": "user", "content": [block]}]})

        assert refused.value.errors[0]["pointer"] == "/messages/0/content/0/cache_control"

    def test_refuses_more_than_four_of_the_callers(self):
        blocks = [{"type": "text", "text": str(n), "cache_control": {"type": "ephemeral"}} for n in range(5)]

        with pytest.raises(FieldError, match="at most 4"):
            _mark({"messages": [{"role": "user", "content": blocks}]})


_texts = st.text(max_size=30) | st.integers(1, 200).map(lambda words: "word " * words)
_blocks = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": _texts})
    | st.fixed_dictionaries({"type": st.just("thinking"), "thinking": _texts, "signature": st.just("s")}),
    max_size=4,
)
_turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": _texts | _blocks}), max_size=6
)
_params = st.fixed_dictionaries(
    {"messages": _turns}, optional={"system": _texts | _blocks, "tools": st.lists(st.builds(_tool), max_size=2)}
)


class TestCacheWritesOf:
    @pytest.mark.parametrize(
        ("marks", "writes"),
        [
            ([], "off"),
            ([None], "off"),
            ([{"type": "ephemeral"}], "ephemeral"),
            ([{"type": "ephemeral", "ttl": "5m"}], "ephemeral"),
            ([{"type": "ephemeral", "ttl": "1h"}], "static"),
            ([{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}], "static"),
        ],
    )
    def test_are_those_of_the_breakpoints(self, marks, writes):
        blocks = [{"type": "text", "text": "a", "cache_control": mark} for mark in marks]
        tool = {**_tool(), "input_schema": {"cache_control": {"type": "ephemeral", "ttl": "1h"}}}

        assert cache_writes_of({"tools": [tool], "messages": [{"role": "user", "content": blocks}]}) == writes

    @pytest.mark.parametrize("caching", ["off", "ephemeral", "static"])
    def test_are_those_that_rensei_adds(self, caching):
        marked = _mark({"system": LONG, "messages": [_user("1")]}, caching=caching)

        assert cache_writes_of(marked) == caching


class TestEveryRequest:
    @settings(max_examples=60)
    @given(params=_params, caching=st.sampled_from(["ephemeral", "static", "off", ""]), minimum=st.integers(1, 2000))
    def test_has_at_most_four_breakpoints_and_says_the_same(self, params, caching, minimum):
        before = copy.deepcopy(params)

        marked = _mark(params, caching=caching, minCacheTokens=minimum)

        marks = list(_breakpoints(marked))
        assert len(marks) <= 4
        assert all(mark == (ONE_HOUR if caching == "static" else FIVE_MINUTES) for mark in marks)
        assert params == before
        assert tokens_about(marked) == tokens_about(params)
        assert not marks or tokens_about(params) >= minimum

    @settings(max_examples=60)
    @given(params=_params)
    def test_stays_as_it_is_once_marked(self, params):
        once = _mark(params)

        assert json.dumps(_mark(once)) == json.dumps(once)
