"""
Prompt caching: where the breakpoints go, and when none should.

Source: https://platform.claude.com/docs/en/build-with-claude/prompt-caching
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from integrations.providers.anthropic.tokens import tokens_about_by_part
from rensei.core.errors import FieldError

BREAKPOINTS_MAX = 4
# A model whose minimum we do not know is taken to have the largest that any has.
_MINIMUM_UNKNOWN_TOKENS = 4096
_MARKS: dict[str, dict[str, str]] = {
    "ephemeral": {"type": "ephemeral"},
    "static": {"type": "ephemeral", "ttl": "1h"},
}
_UNMARKABLE = ("thinking", "redacted_thinking")


def with_cache_breakpoints(
    params: Mapping[str, Any], *, prompt_caching: str, capabilities: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Return the parameters with cache breakpoints. Whoever set any of their own gets exactly those.

    :raises FieldError: if a breakpoint of the caller's own is of no kind that there is
    """
    if is_marked(params):
        return _with_own(params)
    by_part = tokens_about_by_part(params)
    return with_breakpoints_of_ours(params, by_part, prompt_caching=prompt_caching, capabilities=capabilities)


def with_breakpoints_of_ours(
    params: Mapping[str, Any], by_part: Mapping[str, int], *, prompt_caching: str, capabilities: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Return parameters that have no cache breakpoints yet with up to three of them.

    On the last tool, on the last system block, and on the last turn of a conversation, each only if the prompt up to
    there is long enough for the model to cache it. A single first turn gets none: nothing shows yet that it will ever
    come again, and writing it to the cache costs a quarter more than reading it.

    :param by_part: about how many tokens each part has, as `tokens_about_by_part` counts them
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
    """Tell whether the caller has set breakpoints."""
    return params.get("cache_control") is not None or next(_marked(params), None) is not None


def _with_own(params: Mapping[str, Any]) -> dict[str, Any]:
    """:raises FieldError: if there are too many, or one is of no kind that there is"""
    marked = copy.deepcopy(dict(params))
    own = list(_marked(marked))
    for pointer, block in own:
        block["cache_control"] = _translated(block["cache_control"], pointer=pointer)
    if len(own) > BREAKPOINTS_MAX:
        raise FieldError(
            pointer=own[BREAKPOINTS_MAX][0], reason=f"A request takes at most {BREAKPOINTS_MAX} cache breakpoints."
        )
    return marked


def _mark_end(params: dict[str, Any], *, part: str, mark: dict[str, str]) -> None:
    """Mark the last block of a part that may be marked, if there is one."""
    if part == "messages":
        turns = params.get("messages") or []
        if len(turns) > 1:
            params["messages"] = [*turns[:-1], {**turns[-1], "content": _with_mark(turns[-1]["content"], mark=mark)}]
    elif params.get(part):
        params[part] = _with_mark(params[part], mark=mark)


def _with_mark(content: Any, *, mark: dict[str, str]) -> Any:
    """The content with its mark. What was given is the caller's, and stays as it is."""
    if isinstance(content, str):
        return [{"type": "text", "text": content, "cache_control": dict(mark)}] if content else content
    for place in reversed(range(len(content))):
        block = content[place]
        if block.get("type") not in _UNMARKABLE and block.get("text") != "":
            return [*content[:place], {**block, "cache_control": dict(mark)}, *content[place + 1 :]]
    return content


def _marked(params: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk the blocks that carry a breakpoint, each with a JSON pointer to it."""
    for part in ("tools", "system"):
        yield from _marked_in(params.get(part), pointer=f"/{part}")
    messages = params.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and isinstance(message.get("content"), list):
            yield from _marked_in(message["content"], pointer=f"/messages/{index}/content")


def _marked_in(content: Any, *, pointer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, block in enumerate(content if isinstance(content, list) else []):
        if isinstance(block, dict):
            yield from _marked_in(block.get("content"), pointer=f"{pointer}/{index}/content")
            if block.get("cache_control") is not None:
                yield f"{pointer}/{index}/cache_control", block


def _translated(mark: Any, *, pointer: str) -> dict[str, Any]:
    """Take a caller's breakpoint; `static`, which Anthropic does not know, means one hour."""
    if isinstance(mark, dict) and mark.get("type") == "static":
        return dict(_MARKS["static"])
    if isinstance(mark, dict) and mark.get("type") == "ephemeral" and mark.get("ttl", "5m") in ("5m", "1h"):
        return mark
    raise FieldError(pointer=pointer, reason="cache_control must be of type 'ephemeral' (5m or 1h) or 'static'.")
