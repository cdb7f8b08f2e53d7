"""A caller's request, and the checks of its shape."""

from dataclasses import dataclass, field
from typing import Any

from rensei.core.errors import FieldError

ROLES = ("user", "assistant")
BLOCK_TYPES = ("text", "image", "document", "thinking", "redacted_thinking", "tool_use", "tool_result")


@dataclass(frozen=True, kw_only=True)
class DispatchRequest:
    """
    A dispatch body, or a part of one for a dry run. None means: not given, so the profile's value applies.

    `messages` always has the shape of the Messages API; `input` is converted to one user message. A repeated run's
    request is complete: no values are filled in from the profile. `effort_is_asked` and `max_tokens_is_asked` are
    False for values that the original run took from its profile.
    """

    profile_id: str | None = None
    project_id: str | None = None
    # None: the default pool of the project, else the local one.
    pool: str | None = None
    host_id: str | None = None
    system: str | list[dict[str, Any]] | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    effort: str | None = None
    max_tokens: int | None = None
    max_cost_picodollars: int | None = None
    # The definition of an agent, as `agents.checked` returns it.
    agent: dict[str, Any] | None = None
    prompt_caching: str | None = None
    provider_config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    is_complete: bool = False
    effort_is_asked: bool = True
    max_tokens_is_asked: bool = True


def messages_from(*, text: str | None, messages: Any) -> list[dict[str, Any]]:
    """
    Build the list of messages from `input` or `messages`, and check its shape.

    :raises FieldError: for the first invalid part
    """
    if text is not None and messages is not None:
        raise FieldError(pointer="/input", reason="Send either `input` or `messages`, not both.")
    if text is not None:
        if not text.strip():
            raise FieldError(pointer="/input", reason="`input` is empty. Write what the model should answer.")
        return [{"role": "user", "content": [{"type": "text", "text": text}]}]
    if messages is None:
        raise FieldError(pointer="/input", reason="Send `input`, a text, or `messages`, a conversation.")
    if not isinstance(messages, list) or not messages:
        raise FieldError(pointer="/messages", reason="`messages` is a list of at least one message.")
    for place, message in enumerate(messages):
        _check_message(message, pointer=f"/messages/{place}")
    if messages[0]["role"] != "user":
        raise FieldError(pointer="/messages/0/role", reason="The first message is the user's.")
    return messages


def check_system(system: Any) -> str | list[dict[str, Any]] | None:
    """:raises FieldError: if it is neither a text nor a list of text blocks"""
    if system is None or isinstance(system, str):
        return system
    if not isinstance(system, list) or not system:
        raise FieldError(pointer="/system", reason="`system` is a text or a list of text blocks.")
    for place, block in enumerate(system):
        pointer = f"/system/{place}"
        if not isinstance(block, dict) or block.get("type") != "text":
            raise FieldError(pointer=f"{pointer}/type", reason="A system prompt takes text blocks only.")
        _check_block(block, pointer=pointer)
    return system


def _check_message(message: Any, *, pointer: str) -> None:
    if not isinstance(message, dict):
        raise FieldError(pointer=pointer, reason="A message is an object with `role` and `content`.")
    unknown = set(message) - {"role", "content"}
    if unknown:
        raise FieldError(pointer=f"{pointer}/{min(unknown)}", reason="A message has `role` and `content` only.")
    if message.get("role") not in ROLES:
        raise FieldError(pointer=f"{pointer}/role", reason="`role` is user or assistant.")
    _check_content(message.get("content"), pointer=f"{pointer}/content")


def _check_content(content: Any, *, pointer: str) -> None:
    if isinstance(content, str):
        if not content.strip():
            raise FieldError(pointer=pointer, reason="The content of a message is not empty.")
        return
    if not isinstance(content, list) or not content:
        raise FieldError(pointer=pointer, reason="Content is a text or a list of blocks.")
    for place, block in enumerate(content):
        _check_block(block, pointer=f"{pointer}/{place}")


def _check_block(block: Any, *, pointer: str) -> None:
    if not isinstance(block, dict) or block.get("type") not in BLOCK_TYPES:
        reason = f"A block is an object whose `type` is one of {', '.join(BLOCK_TYPES)}."
        raise FieldError(pointer=pointer, reason=reason)
    if block["type"] == "text" and (not isinstance(block.get("text"), str) or not block["text"].strip()):
        raise FieldError(pointer=f"{pointer}/text", reason="A text block holds a text that is not empty.")
    if block["type"] == "image" and not isinstance(block.get("source"), dict):
        raise FieldError(pointer=f"{pointer}/source", reason="An image block holds a `source` object.")
    if block["type"] == "tool_result" and "content" in block:
        _check_content(block["content"], pointer=f"{pointer}/content")
