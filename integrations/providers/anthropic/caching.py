"""
Prompt caching: where breakpoints are set, and when none are.

Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from integrations.providers.anthropic.tokens import tokens_about_by_part
from rensei.core.errors import FieldError, json_pointer

BREAKPOINTS_MAX = 4
# For a model whose minimum is unknown, the largest known minimum is used.
_MINIMUM_UNKNOWN_TOKENS = 4096
_MARKS: dict[str, dict[str, str]] = {
    "ephemeral": {"type": "ephemeral"},
    "static": {"type": "ephemeral", "ttl": "1h"},
}
# Blocks and tools that are known to accept a breakpoint, the latter by their types.
_MARKABLE = frozenset({"text", "image", "document", "search_result", "tool_use", "tool_result"})
_MARKABLE_TOOLS = re.compile(
    r"(?:advisor|bash|browser_toolset|code_execution|computer|computer_toolset|memory|text_editor|web_fetch|web_search)"
    r"_\d{8}|tool_search_tool_(?:bm25|regex)(?:_\d{8})?"
)
# Below these members is the caller's data, not blocks of the API.
_DATA = frozenset({"input", "input_examples", "input_schema", "schema"})
# The place of a block: the place of its container, and its name or index there.
_Path: TypeAlias = tuple["_Path | None", str | int]


def with_cache_breakpoints(
    params: Mapping[str, Any], *, prompt_caching: str, capabilities: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Return the parameters with cache breakpoints. If the caller set any, exactly those are kept.

    :raises FieldError: if the caller's breakpoint has an unknown type
    """
    if is_marked(params):
        return _with_own(params)
    by_part = tokens_about_by_part(params)
    return with_breakpoints_of_ours(params, by_part, prompt_caching=prompt_caching, capabilities=capabilities)


def with_breakpoints_of_ours(
    params: Mapping[str, Any], by_part: Mapping[str, int], *, prompt_caching: str, capabilities: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Add up to three cache breakpoints to parameters that have none.

    They are set on the last tool that accepts one, on the last system block, and on the last turn of a conversation,
    unless that is a prefilled answer. Each is set only if the prompt up to there is long enough for the model to
    cache it. A single first turn gets none: its repetition is uncertain, and writing it to the cache costs a quarter
    more than plain input.

    :param by_part: the approximate number of tokens in each part, as counted by `tokens_about_by_part`
    """
    marked = dict(params)
    if prompt_caching not in _MARKS or not capabilities.get("promptCaching"):
        return marked

    minimum = capabilities.get("minCacheTokens") or _MINIMUM_UNKNOWN_TOKENS
    prefix_tokens = 0
    for part in ("tools", "system", "messages"):
        prefix_tokens += by_part[part]
        if prefix_tokens >= minimum:
            _mark_end(marked, part=part, mark=_MARKS[prompt_caching])
    return marked


def is_marked(params: Mapping[str, Any]) -> bool:
    """Return whether the caller has set breakpoints."""
    return params.get("cache_control") is not None or next(_marked(params), None) is not None


def cache_writes_of(params: Mapping[str, Any]) -> str:
    """Return which cache writes a request may cause, as `prompt_caching` of a profile: those of its breakpoints."""
    lifetimes = {mark.get("ttl") for _, block in _marked(params) if isinstance(mark := block["cache_control"], dict)}
    if not lifetimes:
        return "off"
    return "static" if lifetimes - {None, "5m"} else "ephemeral"


def _with_own(params: Mapping[str, Any]) -> dict[str, Any]:
    """:raises FieldError: if there are too many, or one has an unknown type"""
    marked = copy.deepcopy(dict(params))
    own = list(_marked(marked))
    for path, block in own:
        block["cache_control"] = _translated(block["cache_control"], path=path)
    if len(own) > BREAKPOINTS_MAX:
        raise FieldError(
            pointer=_pointer(own[BREAKPOINTS_MAX][0]),
            reason=f"A request takes at most {BREAKPOINTS_MAX} cache breakpoints.",
        )
    return marked


def _mark_end(params: dict[str, Any], *, part: str, mark: dict[str, str]) -> None:
    """Mark the last block of a part that accepts a mark, if there is one."""
    if part == "messages":
        turns = params.get("messages") or []
        last = len(turns) - 1
        while last > 0 and turns[last].get("role") == "assistant":
            last -= 1
        if last > 0:
            turn = {**turns[last], "content": _with_mark(turns[last]["content"], mark=mark)}
            params["messages"] = [*turns[:last], turn, *turns[last + 1 :]]
    elif params.get(part):
        params[part] = _with_mark(params[part], mark=mark, takes_mark=_tool_takes_mark if part == "tools" else None)


def _with_mark(
    content: Any, *, mark: dict[str, str], takes_mark: Callable[[dict[str, Any]], bool] | None = None
) -> Any:
    """Return the content with its mark, as a copy: the given content is the caller's and is not changed."""
    if isinstance(content, str):
        return [{"type": "text", "text": content, "cache_control": dict(mark)}] if content.strip() else content
    for place in reversed(range(len(content))):
        block = content[place]
        if (takes_mark or _block_takes_mark)(block):
            return [*content[:place], {**block, "cache_control": dict(mark)}, *content[place + 1 :]]
    return content


def _block_takes_mark(block: dict[str, Any]) -> bool:
    kind = block.get("type")
    return kind in _MARKABLE and (kind != "text" or bool(str(block.get("text", "")).strip()))


def _tool_takes_mark(tool: dict[str, Any]) -> bool:
    """Return whether a tool accepts a breakpoint. A tool with deferred loading, or with a deferred member, does not."""
    kind = tool.get("type")
    if kind is not None and kind != "custom" and not _MARKABLE_TOOLS.fullmatch(str(kind)):
        return False
    configs = tool.get("configs")
    members = configs.values() if isinstance(configs, dict) else []
    return not any(isinstance(part, dict) and part.get("defer_loading") for part in (tool, *members))


def _marked(params: Mapping[str, Any]) -> Iterator[tuple[_Path, dict[str, Any]]]:
    """Walk the blocks that have a breakpoint, at any depth, each with its place."""
    left: list[tuple[_Path, Any]] = [((None, part), params.get(part)) for part in ("messages", "system", "tools")]
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            if value.get("cache_control") is not None:
                yield path, value
            left += [((path, name), part) for name, part in value.items() if name not in _DATA]
        elif isinstance(value, list):
            left += [((path, index), value[index]) for index in reversed(range(len(value)))]


def _pointer(path: _Path | None) -> str:
    """Return the JSON pointer of a block's breakpoint. It is built only for an error, as a body may be deep."""
    steps: list[str | int] = ["cache_control"]
    while path is not None:
        path, step = path
        steps.append(step)
    return json_pointer(*reversed(steps))


def _translated(mark: Any, *, path: _Path) -> dict[str, Any]:
    """Convert a caller's breakpoint. `static`, which is unknown to Anthropic, means one hour."""
    if isinstance(mark, dict) and mark.get("type") == "static":
        return dict(_MARKS["static"])
    if isinstance(mark, dict) and mark.get("type") == "ephemeral" and mark.get("ttl", "5m") in ("5m", "1h"):
        return mark
    raise FieldError(pointer=_pointer(path), reason="cache_control must be of type 'ephemeral' (5m or 1h) or 'static'.")
