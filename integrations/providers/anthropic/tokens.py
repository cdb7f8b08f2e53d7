"""
How many tokens a prompt has, without asking Anthropic: from below, about right, and from above.

From below, because a refusal must never hit what would have fitted. Anthropic publishes no tokenizer of its current
models. What is known of byte-pair tokenizers that split at words first is enough for a bound: no token reaches over
white space into the next word, so there is at least one for each word; and the long tokens that exist are runs of one
character, so a long word has at least one for every 16 bytes left when its runs are made one. The newest models count
about 30 % more for the same text, never less. https://platform.claude.com/docs/en/build-with-claude/token-counting
"""

import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

_BYTES_PER_TOKEN_MAX = 16
# English has 3.5 to 4 bytes for each token on older models and about 3 on newer ones.
_BYTES_PER_TOKEN_ABOUT = 3
_TOKENS_PER_IMAGE_ABOUT = {False: 1568, True: 4784}
_FRAME_TOKENS_MAX = 16
_RUN = re.compile(r"(.)\1+", re.DOTALL)


class _File(Enum):
    """A part of a request that is not text."""

    IMAGE = "image"
    DOCUMENT = "document"


# The largest image, and the largest document: 600 pages, each an image with its text.
_TOKENS_MAX = {_File.IMAGE: 4784, _File.DOCUMENT: 600 * 5000}


def tokens_at_least(params: Mapping[str, Any]) -> int:
    """Count from below what a request's system prompt, tools and messages come to."""
    return sum(_words_at_least(part) if isinstance(part, str) else 1 for part in _parts(params))


def tokens_about(params: Mapping[str, Any], *, high_resolution_vision: bool = False) -> int:
    """Estimate what a request's system prompt, tools and messages come to."""
    return sum(tokens_about_by_part(params, high_resolution_vision=high_resolution_vision).values())


def tokens_about_by_part(params: Mapping[str, Any], *, high_resolution_vision: bool = False) -> dict[str, int]:
    """Estimate what a request's `tools`, `system` and `messages` come to, in the order in which they are cached."""
    per_image = _TOKENS_PER_IMAGE_ABOUT[high_resolution_vision]
    return {
        name: sum(tokens_about_text(part) if isinstance(part, str) else per_image for part in parts)
        for name, parts in _parts_by_name(params).items()
    }


def tokens_at_most(params: Mapping[str, Any]) -> int:
    """Count from above: no token is shorter than a byte, and each part adds a few of its own."""
    return _FRAME_TOKENS_MAX + sum(
        _FRAME_TOKENS_MAX + (_bytes_of(part) if isinstance(part, str) else _TOKENS_MAX[part]) for part in _parts(params)
    )


def tokens_about_text(text: str) -> int:
    return tokens_about_bytes(_bytes_of(text))


def tokens_about_bytes(size: int) -> int:
    return -(-size // _BYTES_PER_TOKEN_ABOUT)


def _words_at_least(text: str) -> int:
    words = text.split()
    long_words = (word for word in words if len(word) > _BYTES_PER_TOKEN_MAX or not word.isascii())
    more = sum((_bytes_of(_RUN.sub(r"\1", word)) - 1) // _BYTES_PER_TOKEN_MAX for word in long_words)
    return len(words) + more


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _parts(params: Mapping[str, Any]) -> list[str | _File]:
    """List the texts and the files of a request. What has no shape that there is counts nothing: it is refused."""
    return [part for parts in _parts_by_name(params).values() for part in parts]


def _parts_by_name(params: Mapping[str, Any]) -> dict[str, list[str | _File]]:
    tools: list[str | _File] = [
        json.dumps({key: value for key, value in tool.items() if key != "cache_control"})
        for tool in _objects(params.get("tools"))
    ]
    messages: list[str | _File] = []
    for message in _objects(params.get("messages")):
        messages += _content_parts(message.get("content") or "")
    return {"tools": tools, "system": _content_parts(params.get("system") or ""), "messages": messages}


def _content_parts(content: Any) -> list[str | _File]:
    if isinstance(content, str):
        return [content]
    parts: list[str | _File] = []
    for block in _objects(content):
        match block.get("type"):
            case "text":
                parts.append(str(block.get("text", "")))
            case "thinking":
                parts.append(str(block.get("thinking", "")))
            case "tool_use":
                parts.append(json.dumps(block.get("input")))
            case "tool_result":
                parts += _content_parts(block.get("content"))
            case "image" | "document" as kind:
                parts.append(_File(kind))
    return parts


def _objects(values: object) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
