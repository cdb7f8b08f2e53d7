"""
The number of tokens in a prompt, without a call: a lower bound and an estimate. `bounds` has the upper bound.

A lower bound, because a prompt that fits must never be refused. Anthropic publishes no tokenizer of its current
models. Byte-pair tokenizers that first split at words give a bound: no token extends across white space, so each
word has at least one. The long tokens that exist are runs of one character, so with each run reduced to one
character, a long word has at least one for every 16 bytes. The newest models count about 30 % more for the same text,
never less. https://platform.claude.com/docs/en/build-with-claude/token-counting

The lower bound excludes what the API may leave out of the prompt: thinking of earlier turns, tools loaded
later, and the whole request where it uses an unknown feature, such as one that clears its own context.
https://platform.claude.com/docs/en/build-with-claude/context-editing
"""

import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

_BYTES_PER_TOKEN_MAX = 16
# English text has 3.5 to 4 bytes for each token on older models and about 3 on newer ones.
_BYTES_PER_TOKEN_ABOUT = 3
_TOKENS_PER_IMAGE_ABOUT = {False: 1568, True: 4784}
_RUN = re.compile(r"(.)\1+", re.DOTALL)
# Fields that cost nothing except for tokens that the request itself holds.
KNOWN_FIELDS = frozenset(
    {
        "model",
        "messages",
        "max_tokens",
        "cache_control",
        "context_management",
        "inference_geo",
        "metadata",
        "output_config",
        "output_format",
        "service_tier",
        "speed",
        "stop_sequences",
        "stream",
        "system",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
    }
)
# The one of these that may remove parts of the prompt.
_SHORTENS = "context_management"
# Created once: `json.dumps` with options creates one for each call.
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class _Kind(Enum):
    """How a part of a request counts for the lower bound."""

    TEXT = "at least one token for each word"
    JSON = "at least one token for every 16 bytes, its runs made one"
    FILE = "at least one token"
    UNSURE = "possibly left out"
    UNKNOWN = "possibly takes other parts out of the prompt"


_Part = tuple[_Kind, str]


def tokens_at_least(params: Mapping[str, Any]) -> int:
    """Return a lower bound for a request's system prompt, tools and messages."""
    if _SHORTENS in params or not params.keys() <= KNOWN_FIELDS:
        return 0
    count = 0
    for parts in _parts_by_name(params).values():
        for kind, text in parts:
            match kind:
                case _Kind.TEXT:
                    count += _words_at_least(text)
                case _Kind.JSON:
                    count += _bytes_of(_RUN.sub(r"\1", text)) // _BYTES_PER_TOKEN_MAX
                case _Kind.FILE:
                    count += 1
                case _Kind.UNKNOWN:
                    return 0
    return count


def tokens_about(params: Mapping[str, Any], *, high_resolution_vision: bool = False) -> int:
    """Estimate the tokens of a request's system prompt, tools and messages."""
    return sum(tokens_about_by_part(params, high_resolution_vision=high_resolution_vision).values())


def tokens_about_by_part(params: Mapping[str, Any], *, high_resolution_vision: bool = False) -> dict[str, int]:
    """Estimate the tokens of a request's `tools`, `system` and `messages`, in the order in which they are cached."""
    per_file = _TOKENS_PER_IMAGE_ABOUT[high_resolution_vision]
    return {
        name: sum([per_file if kind is _Kind.FILE else tokens_about_text(text) for kind, text in parts])
        for name, parts in _parts_by_name(params).items()
    }


def tokens_about_text(text: str) -> int:
    return tokens_about_bytes(_bytes_of(text))


def tokens_about_bytes(size: int) -> int:
    return -(-size // _BYTES_PER_TOKEN_ABOUT)


def objects_in(values: object) -> list[dict[str, Any]]:
    """List the objects of a list. Anything of another type counts nothing: the API refuses it."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _words_at_least(text: str) -> int:
    words = text.split()
    long_words = (word for word in words if len(word) > _BYTES_PER_TOKEN_MAX or not word.isascii())
    more = sum((_bytes_of(_RUN.sub(r"\1", word)) - 1) // _BYTES_PER_TOKEN_MAX for word in long_words)
    return len(words) + more


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _parts_by_name(params: Mapping[str, Any]) -> dict[str, list[_Part]]:
    messages: list[_Part] = []
    for message in objects_in(params.get("messages")):
        content = message.get("content") or ""
        parts = [(_Kind.TEXT, content)] if type(content) is str else _content_parts(content)
        # A system message among the others may be cleared.
        messages += parts if message.get("role") != "system" else ((_unsure(kind), text) for kind, text in parts)
    return {
        "tools": [_tool_part(tool) for tool in objects_in(params.get("tools"))],
        "system": list(_content_parts(params.get("system") or "")),
        "messages": messages,
    }


def _tool_part(tool: dict[str, Any]) -> _Part:
    text = _json({key: value for key, value in tool.items() if key != "cache_control"})
    return _Kind.UNSURE if tool.get("defer_loading") else _Kind.JSON, text


def _unsure(kind: _Kind) -> _Kind:
    return kind if kind is _Kind.UNKNOWN else _Kind.UNSURE


def _content_parts(content: Any) -> Iterator[_Part]:
    if isinstance(content, str):
        yield _Kind.TEXT, content
        return
    for block in objects_in(content):
        match block.get("type"):
            case "text":
                yield _Kind.TEXT, str(block.get("text", ""))
            case "thinking" | "redacted_thinking":
                yield _Kind.UNSURE, str(block.get("thinking") or block.get("data") or "")
            case "tool_use" | "server_tool_use":
                yield _Kind.JSON, _json(block.get("input"))
            case "tool_result" | "search_result":
                yield from _content_parts(block.get("content"))
            case "image":
                yield _Kind.FILE, ""
            case "document":
                yield from _document_parts(block.get("source"))
            case _:
                yield _Kind.UNKNOWN, _json(block)


def _document_parts(source: Any) -> Iterator[_Part]:
    match source:
        case {"type": "text", "data": str(text)}:
            yield _Kind.TEXT, text
        case {"type": "content", "content": content}:
            yield from _content_parts(content)
        case _:
            yield _Kind.FILE, ""
