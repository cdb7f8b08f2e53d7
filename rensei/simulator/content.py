"""Checks of the system prompt and the messages: roles, content blocks, tool results, cache breakpoints."""

from collections.abc import Iterator
from typing import Any

from rensei.simulator.documents import check_citations_setting, check_document_source, check_texts
from rensei.simulator.errors import ApiError, invalid
from rensei.simulator.images import check_image_source
from rensei.simulator.shapes import require_dict, require_fields, require_list, require_one_of, require_string
from rensei.simulator.signatures import check_signature

_MESSAGES_MAX = 100_000
_FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "text": ({"type", "text"}, {"cache_control", "citations"}),
    "image": ({"type", "source"}, {"cache_control", "transformations"}),
    "document": ({"type", "source"}, {"cache_control", "citations", "context", "title"}),
    "search_result": ({"type", "source", "title", "content"}, {"cache_control", "citations"}),
    "thinking": ({"type", "thinking", "signature"}, set()),
    "redacted_thinking": ({"type", "data"}, set()),
    "tool_use": ({"type", "id", "name", "input"}, {"cache_control", "caller", "toolset_name"}),
    "tool_result": ({"type", "tool_use_id"}, {"cache_control", "content", "is_error", "toolset_name"}),
    "tool_reference": ({"type", "tool_name"}, {"cache_control"}),
}
_STRINGS = {
    "search_result": ("source", "title"),
    "thinking": ("thinking", "signature"),
    "redacted_thinking": ("data",),
    "tool_use": ("id", "name"),
    "tool_result": ("tool_use_id",),
    "tool_reference": ("tool_name",),
}
_KINDS_OF_ROLE = {
    "user": ("text", "image", "document", "search_result", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use", "document"),
    "system": ("text",),
}
_KINDS_IN_TOOL_RESULT = ("text", "image", "document", "search_result", "tool_reference")
_CLEAR_AT_BETA = "mid-conversation-system-clear-at-2026-08-21"
# The second is the name that Claude Code uses.
_MESSAGE_CONFIG_BETAS = frozenset({"mid-conversation-output-config-2026-07-01", "per-turn-control-2026-07-01"})
_EFFORTS = ("low", "medium", "high", "xhigh", "max")


def check_system(value: Any) -> None:
    """
    Check the system prompt.

    :raises ApiError: 400
    """
    if isinstance(value, str):
        return
    for index, block in enumerate(require_list(value, path="system")):
        _check_block(block, kinds=("text",), path=f"system.{index}", key_sha256="")


def check_messages(value: Any, *, version: str, key_sha256: str, betas: frozenset[str]) -> None:
    """
    Check the messages.

    :raises ApiError: 400
    """
    messages = require_list(value, path="messages")
    if not messages:
        raise invalid("messages", "at least one message is required")
    if len(messages) > _MESSAGES_MAX:
        raise invalid("messages", f"List should have at most {_MESSAGES_MAX} items")
    for index, message in enumerate(messages):
        path = f"messages.{index}"
        optional = _optional_fields(require_dict(message, path=path), betas=betas)
        require_fields(message, required={"role", "content"}, optional=optional, path=path)
        require_one_of(message["role"], tuple(_KINDS_OF_ROLE), path=f"{path}.role")
        if message.get("clear_at") is not None:
            require_one_of(message["clear_at"], ("next_user_message", "never"), path=f"{path}.clear_at")
        if message.get("output_config") is not None:
            config = require_dict(message["output_config"], path=f"{path}.output_config")
            require_fields(config, required=set(), optional={"effort"}, path=f"{path}.output_config")
            if config.get("effort") is not None:
                require_one_of(config["effort"], _EFFORTS, path=f"{path}.output_config.effort")
        _check_content(message, path=path, is_last=index == len(messages) - 1, key_sha256=key_sha256)
        if version != "2023-06-01":
            _check_rules_of_2026(message, path=path)
    _check_order(messages)
    _check_tool_results(messages)


def _optional_fields(message: dict[str, Any], *, betas: frozenset[str]) -> set[str]:
    """List the fields of a message besides role and content: those of a system message need the beta of each."""
    if message.get("role") != "system":
        return set()
    opened = {"clear_at": {_CLEAR_AT_BETA}, "output_config": _MESSAGE_CONFIG_BETAS}
    return {name for name, names in opened.items() if names & betas}


def all_blocks(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over every tool, system block and content block in prefix order, with its path."""
    for index, tool in enumerate(body.get("tools") or []):
        yield f"tools.{index}", tool
    if isinstance(system := body.get("system"), list):
        for index, block in enumerate(system):
            yield f"system.{index}", block
    for index, message in enumerate(body["messages"]):
        yield from _nested_blocks(message["content"], path=f"messages.{index}.content")


def check_cache_control(body: dict[str, Any]) -> None:
    """
    Check the cache breakpoints of a whole request.

    :raises ApiError: 400
    """
    marked = []
    for path, block in all_blocks(body):
        if block.get("cache_control") is not None:
            marked.append(_check_mark(block["cache_control"], path=f"{path}.cache_control"))
            if block.get("type") == "text" and not block["text"]:
                raise invalid(path, "cache_control cannot be set for empty text blocks")
    if len(marked) > 4:
        raise ApiError(400, f"A maximum of 4 blocks with cache_control may be provided. Found {len(marked)}.")
    if body.get("cache_control") is not None:
        marked = _with_automatic_mark(body, marked=marked)
    if "1h" in marked and "5m" in marked and marked.index("5m") < len(marked) - 1 - marked[::-1].index("1h"):
        raise ApiError(400, "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block.")


def _with_automatic_mark(body: dict[str, Any], *, marked: list[str]) -> list[str]:
    ttl = _check_mark(body["cache_control"], path="cache_control")
    last_content = body["messages"][-1]["content"]
    last_mark = last_content[-1].get("cache_control") if isinstance(last_content, list) else None
    if last_mark is not None:
        if last_mark.get("ttl", "5m") != ttl:
            raise invalid("cache_control", "the last block already has a cache_control with a different ttl")
        return marked
    if len(marked) == 4:
        raise ApiError(400, "A maximum of 4 blocks with cache_control may be provided. Found 5.")
    return [*marked, ttl]


def _check_mark(value: Any, *, path: str) -> str:
    mark = require_dict(value, path=path)
    require_fields(mark, required={"type"}, optional={"ttl"}, path=path)
    require_one_of(mark["type"], ("ephemeral",), path=f"{path}.type")
    require_one_of(mark.get("ttl", "5m"), ("5m", "1h"), path=f"{path}.ttl")
    return str(mark.get("ttl", "5m"))


def _check_content(message: dict[str, Any], *, path: str, is_last: bool, key_sha256: str) -> None:
    content = message["content"]
    if not isinstance(content, str):
        for index, block in enumerate(require_list(content, path=f"{path}.content")):
            kinds = _KINDS_OF_ROLE[message["role"]]
            _check_block(block, kinds=kinds, path=f"{path}.content.{index}", key_sha256=key_sha256)
    may_be_empty = is_last and message["role"] == "assistant"
    if not content and not may_be_empty:
        raise invalid(path, "all messages must have non-empty content except for the optional final assistant message")


def _check_block(value: Any, *, kinds: tuple[str, ...], path: str, key_sha256: str) -> None:
    block = require_dict(value, path=path)
    if "type" not in block:
        raise invalid(f"{path}.type", "Field required")
    if block["type"] not in kinds:
        raise invalid(path, f"Input tag '{block['type']}' does not match any of the expected tags: {', '.join(kinds)}")
    required, optional = _FIELDS[block["type"]]
    require_fields(block, required=required, optional=optional, path=path)
    for name in _STRINGS.get(block["type"], ()):
        require_string(block[name], path=f"{path}.{name}")
    match block["type"]:
        case "text":
            if not require_string(block["text"], path=f"{path}.text"):
                if block.get("cache_control") is not None:
                    raise invalid(path, "cache_control cannot be set for empty text blocks")
                raise invalid("messages", "text content blocks must be non-empty")
            if not block["text"].strip():
                raise invalid("messages", "text content blocks must contain non-whitespace text")
        case "image":
            check_image_source(block["source"], path=f"{path}.source")
        case "document":
            check_document_source(block["source"], path=f"{path}.source")
            if block.get("citations") is not None:
                check_citations_setting(block["citations"], path=f"{path}.citations")
        case "search_result":
            check_texts(block["content"], path=f"{path}.content")
        case "thinking":
            check_signature(block, path=path, key_sha256=key_sha256)
        case "tool_use":
            require_dict(block["input"], path=f"{path}.input")
        case "tool_result" if not isinstance(block.get("content", ""), str):
            for index, inner in enumerate(require_list(block["content"], path=f"{path}.content")):
                inner_path = f"{path}.content.{index}"
                _check_block(inner, kinds=_KINDS_IN_TOOL_RESULT, path=inner_path, key_sha256=key_sha256)


def _check_rules_of_2026(message: dict[str, Any], *, path: str) -> None:
    """Refuse what version 2026-10-21 of the API no longer accepts."""
    for index, block in enumerate(message["content"] if isinstance(message["content"], list) else []):
        if message["role"] == "assistant" and block["type"] == "document":
            raise invalid(f"{path}.content.{index}", "document blocks are not allowed in assistant messages")
        if message["role"] == "user" and block["type"] == "text" and block.get("citations"):
            raise invalid(f"{path}.content.{index}.citations", "citations are not allowed in user messages")


def _check_order(messages: list[dict[str, Any]]) -> None:
    """
    Check that a user message is first, and that system messages are between user and assistant messages.

    Source: https://platform.claude.com/docs/en/build-with-claude/mid-conversation-system-messages
    """
    roles = [message["role"] for message in messages]
    if roles[0] == "system":
        raise invalid("messages.0", "use the top-level 'system' parameter for the initial system prompt")
    if roles[0] != "user":
        raise invalid("messages", 'first message must use the "user" role')
    for index, role in enumerate(roles):
        is_placed = roles[index - 1] == "user" and roles[index + 1 : index + 2] in ([], ["assistant"])
        if role == "system" and not is_placed:
            raise invalid(
                f"messages.{index}", "a system message must follow a user message, and be the last or precede an answer"
            )


def _check_tool_results(messages: list[dict[str, Any]]) -> None:
    """Check that every tool call has its result in the next message, and every result its call."""
    expected: set[str] = set()
    for index, message in enumerate(messages):
        blocks = message["content"] if isinstance(message["content"], list) else []
        given = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
        if missing := expected - given:
            raise invalid(
                f"messages.{index - 1}",
                "`tool_use` ids were found without `tool_result` blocks immediately after: "
                f"{', '.join(sorted(missing))}",
            )
        if extra := given - expected:
            raise invalid(
                f"messages.{index}",
                f"unexpected `tool_use_id` found in `tool_result` blocks: {', '.join(sorted(extra))}",
            )
        expected = {block["id"] for block in blocks if block["type"] == "tool_use"}
    if expected:
        raise invalid(
            f"messages.{len(messages) - 1}",
            f"`tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(sorted(expected))}",
        )


def _nested_blocks(content: Any, *, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, block in enumerate(content if isinstance(content, list) else []):
        yield from _nested_blocks(block.get("content"), path=f"{path}.{index}.content")
        yield f"{path}.{index}", block
