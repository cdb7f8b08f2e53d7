"""
Tools that Anthropic runs while it answers: each of their turns reads the prompt and their results again.

Sources: https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons (at most ten turns for a request),
…/agents-and-tools/tool-use/web-search-tool, …/web-fetch-tool and …/build-with-claude/compaction
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from integrations.providers.anthropic.tokens import objects_in
from rensei.core.errors import FieldError, json_pointer
from rensei.core.unknown import note_unknown

TURNS_MAX = 10
USES_MAX = 1000
KNOWN_TOOLS = re.compile(
    r"(?:bash|text_editor|computer|memory|web_search|web_fetch)_\d{8}|tool_search_tool_(?:bm25|regex)(?:_\d{8})?"
)
# The caller runs these, so their results are part of the next request.
_CLIENT_TOOLS = re.compile(r"custom|(?:bash|text_editor|computer|memory)_\d{8}")
# `max_content_tokens` of a fetch is documented as approximate.
_CONTENT_MARGIN = (5, 4)
_CHANGES_TOOLS = ("tool_addition", "compaction")

# The steps of a JSON pointer. For a tool defined by a block, it is the pointer of the block.
Place = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Most:
    """The most that a call may be charged for: the prompts of all its turns together, its output, its searches."""

    prompt_tokens: int
    output_tokens: int
    web_searches: int


def tools_of(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the tools that a request declares, including those defined in its messages."""
    return [tool for _, tool in placed_tools(params)]


def placed_tools(params: Mapping[str, Any]) -> list[tuple[Place, dict[str, Any]]]:
    """List the tools that a request declares, including those defined in its messages, each with its place."""
    tools: list[tuple[Place, dict[str, Any]]] = [
        (("tools", index), tool) for index, tool in enumerate(objects_in(params.get("tools")))
    ]
    for turn, message in enumerate(objects_in(params.get("messages"))):
        content = message.get("content")
        if isinstance(content, str):
            continue
        for index, block in enumerate(objects_in(content)):
            if block.get("type") in _CHANGES_TOOLS:
                place = ("messages", turn, "content", index)
                tools += ((place, definition) for definition in _definitions_in(block))
    return tools


def check_limits(tools: Sequence[Mapping[str, Any]]) -> None:
    """
    Check that the use of tools is limited in a call that the platform pays for, or bills.

    :raises FieldError: naming the missing limit
    """
    for index, tool in enumerate(tools):
        name = next((kind for kind in ("web_search", "web_fetch") if _kind_of(tool).startswith(f"{kind}_")), "")
        uses = tool.get("max_uses")
        is_limited = type(uses) is int and 0 < uses <= USES_MAX
        if (name == "web_search" or (name and uses is not None)) and not is_limited:
            raise FieldError(
                pointer=json_pointer("tools", index, "max_uses"),
                reason=f"With a key of the platform, `{name}` takes a `max_uses` from 1 to {USES_MAX}, so that what "
                "the call may cost is known before it is made. Add it, or use byok with a key of your own.",
            )


def most_of_call(
    params: Mapping[str, Any],
    tools: Sequence[Mapping[str, Any]],
    *,
    prompt_tokens: int,
    window: int,
    max_tokens: int,
    max_output_tokens: int | None,
) -> Most:
    """
    Bound what is charged for a call, given a bound of its prompt.

    Every later turn reads the prompt, the output and the tools' results, up to the context window. A turn that may
    summarize its context first reads it twice, and the summary is output in addition to the answer.
    """
    server_tools = [tool for tool in tools if not _CLIENT_TOOLS.fullmatch(_kind_of(tool))]
    turns, prompts = 1, prompt_tokens
    if server_tools:
        turns = TURNS_MAX
        brought = sum(_content_tokens(tool, window=window) for tool in server_tools)
        prompts += (turns - 1) * min(window, prompt_tokens + max_tokens + brought)
    output = max_tokens
    if _may_compact(params):
        prompts *= 2
        output += turns * (max_output_tokens or window)
    searches = sum(_uses(tool) for tool in server_tools if _kind_of(tool).startswith("web_search_"))
    return Most(prompt_tokens=prompts, output_tokens=output, web_searches=searches)


def _content_tokens(tool: Mapping[str, Any], *, window: int) -> int:
    """Bound what a tool may add to the prompt. A tool search adds nothing: its tools are declared in the request."""
    kind = _kind_of(tool)
    if kind.startswith("tool_search_tool_"):
        return 0
    limit = tool.get("max_content_tokens")
    if kind.startswith("web_fetch_") and type(limit) is int and limit > 0 and tool.get("max_uses") is not None:
        up, down = _CONTENT_MARGIN
        return min(window, _uses(tool) * limit * up // down)
    return window


def _uses(tool: Mapping[str, Any]) -> int:
    uses = tool.get("max_uses")
    return uses if type(uses) is int and 0 < uses <= USES_MAX else USES_MAX


def _may_compact(params: Mapping[str, Any]) -> bool:
    management = params.get("context_management")
    edits = objects_in(management.get("edits")) if isinstance(management, dict) else []
    others = [kind for edit in edits if not (kind := _kind_of(edit)).startswith("clear_")]
    for kind in others:
        if not kind.startswith("compact_"):
            note_unknown("context_edit", kind)
    return bool(others)


def _kind_of(value: Mapping[str, Any]) -> str:
    kind = value.get("type")
    return "custom" if kind is None else str(kind)


def _definitions_in(block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Walk the tool definitions in a block that changes tools."""
    waiting: list[Any] = [block]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and isinstance(value.get("definition"), dict):
            yield value["definition"]
        elif isinstance(value, dict | list):
            waiting += _inner(value)


def _inner(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
