"""
Tools that Anthropic runs while it answers: each of their turns reads the prompt and their results again.

Sources: https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons (at most ten turns for a request),
…/agents-and-tools/tool-use/web-search-tool, …/web-fetch-tool and …/build-with-claude/compaction
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from integrations.providers.anthropic.known import CLIENT_TOOLS
from integrations.providers.anthropic.tokens import objects_in
from rensei.core.errors import FieldError, json_pointer
from rensei.core.limits import limit

TURNS_MAX = 10
USES_MAX = limit(
    1000,
    "times",
    what="How often `web_search` may be used in a gateway call whose cost is held",
    told="the caller: 400 `VALIDATION_FAILED`",
)
_CHANGES_TOOLS = ("tool_addition", "compaction")

# The steps of a JSON pointer. For a tool defined by a block, it is the pointer of the block.
Place = tuple[str | int, ...]
PlacedTools = list[tuple[Place, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Most:
    """The most that a call may be charged for: the prompts of all its turns together, its output, its searches."""

    prompt_tokens: int
    output_tokens: int
    web_searches: int


def placed_tools(params: Mapping[str, Any]) -> PlacedTools:
    """List the tools that a request declares, including those defined in its messages, each with its place."""
    tools: PlacedTools = [(("tools", index), tool) for index, tool in enumerate(objects_in(params.get("tools")))]
    for turn, message in enumerate(objects_in(params.get("messages"))):
        if type(content := message.get("content")) is str:
            continue
        for index, block in enumerate(objects_in(content)):
            if block.get("type") in _CHANGES_TOOLS:
                place = ("messages", turn, "content", index)
                tools += ((place, definition) for definition in _definitions_in(block))
    return tools


def check_limits(placed: Iterable[tuple[Place, Mapping[str, Any]]]) -> None:
    """
    Check that searches, which are charged one by one, are limited in a call whose cost is held before it.

    :raises FieldError: naming the missing limit
    """
    for place, tool in placed:
        uses = tool.get("max_uses")
        if _searches(tool) and not (type(uses) is int and 0 < uses <= USES_MAX):
            raise FieldError(
                pointer=json_pointer(*place, "max_uses"),
                reason=f"Where the cost of a call is held, `web_search` takes a `max_uses` from 1 to {USES_MAX}, so "
                "that what the call may cost is known before it is made. Add it, or use byok without a cap.",
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
    server_tools = [tool for tool in tools if not is_of_client(tool)]
    turns, prompts = 1, prompt_tokens
    if server_tools:
        turns = TURNS_MAX
        # A tool search brings nothing in: its tools are declared in the request. Any other tool may fill the window:
        # `max_content_tokens` of a fetch is approximate, and does not limit PDFs.
        adds_nothing = all(_kind_of(tool).startswith("tool_search_tool_") for tool in server_tools)
        prompts += (turns - 1) * (min(window, prompt_tokens + max_tokens) if adds_nothing else window)
    output = max_tokens
    if _may_compact(params):
        prompts *= 2
        output += turns * (max_output_tokens or window)
    searches = sum(_uses(tool) for tool in server_tools if _searches(tool))
    return Most(prompt_tokens=prompts, output_tokens=output, web_searches=searches)


def is_of_client(tool: Mapping[str, Any]) -> bool:
    """Return whether the caller runs a tool. All others, known or not, are run by the provider."""
    return _kind_of(tool) in CLIENT_TOOLS


def _searches(tool: Mapping[str, Any]) -> bool:
    return _kind_of(tool).startswith("web_search_")


def _uses(tool: Mapping[str, Any]) -> int:
    uses = tool.get("max_uses")
    return uses if type(uses) is int and 0 < uses <= USES_MAX else USES_MAX


def _may_compact(params: Mapping[str, Any]) -> bool:
    management = params.get("context_management")
    edits = objects_in(management.get("edits")) if isinstance(management, dict) else []
    return any(not _kind_of(edit).startswith("clear_") for edit in edits)


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
