"""What tools that the provider runs may add to a call, and which need a limit."""

from typing import Any

import pytest

from integrations.providers.anthropic.bounds import PromptBounds
from integrations.providers.anthropic.server_tools import (
    TURNS_MAX,
    USES_MAX,
    Most,
    check_limits,
    placed_tools,
)
from rensei.core.errors import FieldError

WINDOW = 1_000_000
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
FETCH = {"type": "web_fetch_20260309", "name": "web_fetch"}
OWN = {"name": "own", "input_schema": {"type": "object"}}


def _most(*tools: dict[str, Any], **fields: Any) -> Most:
    body = {"messages": [{"role": "user", "content": "Look it up."}], "tools": list(tools), **fields}
    return PromptBounds(body, window=WINDOW).of_call(max_tokens=100, max_output_tokens=5000)


def _prompt(*tools: dict[str, Any]) -> int:
    body = {"messages": [{"role": "user", "content": "Look it up."}], "tools": list(tools)}
    return PromptBounds(body, window=WINDOW).at_most


class TestMostOfACall:
    @pytest.mark.parametrize(
        "tool",
        [OWN, {**OWN, "type": "custom"}, {"type": "bash_20250124", "name": "bash"}],
        ids=["own", "custom", "bash"],
    )
    def test_is_one_prompt_where_the_caller_runs_the_tools(self, tool: dict[str, Any]) -> None:
        assert _most(tool) == Most(prompt_tokens=_prompt(tool), output_tokens=100, web_searches=0)

    def test_has_the_whole_window_for_each_further_turn(self) -> None:
        tool = {**SEARCH, "max_uses": 3}

        most = _most(tool)

        assert most.prompt_tokens == _prompt(tool) + (TURNS_MAX - 1) * WINDOW
        assert most.web_searches == 3

    @pytest.mark.parametrize(
        "tool",
        [FETCH, {**FETCH, "max_uses": 1, "max_content_tokens": 1000}, {"type": "made_up_20990101"}],
        ids=["fetch", "limited fetch", "unknown"],
    )
    def test_has_the_whole_window_where_a_tool_may_bring_in_anything(self, tool: dict[str, Any]) -> None:
        assert _most(tool).prompt_tokens == _prompt(tool) + (TURNS_MAX - 1) * WINDOW

    def test_reads_the_prompt_again_where_tools_are_searched_for(self) -> None:
        tool = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}

        assert _most(tool).prompt_tokens == _prompt(tool) + (TURNS_MAX - 1) * (_prompt(tool) + 100)

    @pytest.mark.parametrize(
        ("edit", "prompts", "output"),
        [("clear_tool_uses_20250919", 1, 100), ("compact_20260112", 2, 5100), ("made_up_20990101", 2, 5100)],
    )
    def test_has_a_summary_where_the_context_may_be_compacted(self, edit: str, prompts: int, output: int) -> None:
        plain = _most(OWN, context_management={"edits": []})

        most = _most(OWN, context_management={"edits": [{"type": edit}]})

        assert most.output_tokens == output
        assert most.prompt_tokens >= plain.prompt_tokens * prompts

    def test_sees_tools_that_a_message_defines(self) -> None:
        change = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {**SEARCH, "max_uses": 3}}}
        body = {"messages": [{"role": "user", "content": [change]}]}

        assert [tool for _, tool in placed_tools(body)] == [{**SEARCH, "max_uses": 3}]
        assert PromptBounds(body, window=WINDOW).of_call(max_tokens=1, max_output_tokens=1).web_searches == 3


class TestLimits:
    @pytest.mark.parametrize("tool", [OWN, {**SEARCH, "max_uses": USES_MAX}, FETCH, {**FETCH, "max_uses": 1}])
    def test_are_enough(self, tool: dict[str, Any]) -> None:
        check_limits(placed_tools({"tools": [OWN, tool]}))

    @pytest.mark.parametrize("uses", [None, 0, -1, True, 1.5, "3", USES_MAX + 1, 10**12])
    def test_are_asked_for(self, uses: Any) -> None:
        tool = SEARCH if uses is None else {**SEARCH, "max_uses": uses}

        with pytest.raises(FieldError, match="max_uses") as refused:
            check_limits(placed_tools({"tools": [OWN, tool]}))

        assert refused.value.errors[0]["pointer"] == "/tools/1/max_uses"

    def test_are_asked_for_at_the_block_that_defines_a_tool(self) -> None:
        change = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": SEARCH}}
        messages = [{"role": "user", "content": "Hi."}, {"role": "system", "content": [{"type": "text"}, change]}]

        with pytest.raises(FieldError) as refused:
            check_limits(placed_tools({"tools": [OWN], "messages": messages}))

        assert refused.value.errors[0]["pointer"] == "/messages/1/content/1/max_uses"
