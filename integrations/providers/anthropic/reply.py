"""
An answer assembled from the events of a stream, all of which are validated.

Source of the events: https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

from integrations.providers.anthropic.usage import UsageReader
from rensei.core.texts import read_storable
from rensei.core.unknown import note_unknown
from rensei.core.usage import UsagePart

_TEXT_PARTS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
}


# Events without content or usage.
_EMPTY_EVENTS = frozenset({"content_block_stop", "error", "ping"})
# Where an event may have a usage report, besides the two events that have one by their definition.
_HOLDERS = ("message", "content_block", "delta")


_NOTHING_ASKED: Mapping[str, object] = {}


class Reply:
    """What has arrived of an answer so far: its content, its usage, and whether the usage is plausible."""

    def __init__(
        self, *, input_tokens_about: int, keeps_content: bool = True, asked: Mapping[str, object] = _NOTHING_ASKED
    ) -> None:
        """:param asked: the values with a factor on prices that the request asks for, by their names"""
        self.stop_reason = ""
        self.is_complete = False
        # Whether anything of a message has arrived, and whether any of its content has.
        self.has_begun = False
        self.output_seen = False
        self._input_tokens_about = input_tokens_about
        self._keeps_content = keeps_content
        self._blocks: dict[int, dict[str, Any]] = {}
        self._json_parts: dict[int, list[str]] = {}
        self._text_parts: dict[int, dict[str, list[str]]] = {}
        self._usage = UsageReader(asked=asked)

    def take(self, event: dict[str, Any]) -> str:
        """Add an event, and return the text that it contains. Unknown kinds are counted, with any usage in them."""
        kind = event.get("type")
        if "usage" in event and kind != "message_delta":
            self._usage.take_unexpected(event["usage"], place=str(kind))
        match kind:
            case "message_start":
                self.has_begun = True
                if isinstance(message := event.get("message"), dict):
                    self._usage.take_model(message.get("model"))
                    self._usage.take(message.get("usage"), at_start=True)
                    self._take_beside(message, place="message_start")
            case "content_block_start":
                return self._start_block(event.get("index"), event.get("content_block"))
            case "content_block_delta":
                return self._take_delta(event)
            case "message_delta":
                delta = event.get("delta")
                self._take_end(delta if isinstance(delta, dict) else {}, usage=event.get("usage"))
                self._take_beside(event, place="message_delta")
                if isinstance(delta, dict) and "usage" in delta:
                    self._usage.take_unexpected(delta["usage"], place="message_delta.delta")
            case "message_stop":
                self.is_complete = True
            case _ if not isinstance(kind, str) or kind not in _EMPTY_EVENTS:
                note_unknown("event_type", kind if isinstance(kind, str) else "(no name)")
                for name in _HOLDERS:
                    if isinstance(holder := event.get(name), dict):
                        self._usage.take_unexpected(holder.get("usage"), place=f"{kind}.{name}")
        return ""

    def take_message(self, message: dict[str, Any], *, unread_bytes: int = 0) -> None:
        """
        Take an answer that was not streamed.

        :param unread_bytes: its size, if its content is missing in `message` because it could not be built
        """
        self.has_begun = True
        if unread_bytes:
            self.output_seen = True
            self._usage.take_unread(unread_bytes)
        self._usage.take_model(message.get("model"))
        content = message.get("content")
        for index, block in enumerate(content if isinstance(content, list) else []):
            self._start_block(index, block)
        self._take_end(message, usage=message.get("usage"))
        self._take_beside(message, place="message")
        self.is_complete = message.get("type") == "message"

    @property
    def text(self) -> str:
        return "".join(block.get("text", "") for block in self.content() if block.get("type") == "text")

    def content(self) -> list[dict[str, Any]]:
        """Return the content blocks in order."""
        blocks = []
        for index in sorted(self._blocks):
            block = dict(self._blocks[index])
            for name, parts in self._text_parts.get(index, {}).items():
                block[name] = str(block.get(name) or "") + "".join(parts)
            if index in self._json_parts:
                block["input"] = _parse_input("".join(self._json_parts[index]), otherwise=block.get("input"))
            blocks.append(block)
        return blocks

    def parts_so_far(self) -> tuple[UsagePart, ...]:
        """Return the usage of each model in an answer that may be incomplete. Empty if nothing has arrived."""
        return self.parts() if self.has_begun else ()

    def parts(self) -> tuple[UsagePart, ...]:
        """Return the usage of each model. The answering model is the first."""
        refused = self.stop_reason == "refusal" and not self._blocks
        parts = self._usage.parts(
            input_tokens_about=self._input_tokens_about,
            refused=refused,
        )
        return tuple(parts)

    def _take_beside(self, holder: dict[str, Any], *, place: str) -> None:
        """Take what is called a usage beside the known one."""
        for name in holder:
            if "usage" in name and name != "usage":
                note_unknown("usage_field", name)
                self._usage.take_unexpected(holder[name], place=f"{place}.{name}")

    def _take_end(self, end: dict[str, Any], *, usage: object) -> None:
        self.stop_reason = str(end.get("stop_reason") or "") or self.stop_reason
        self._usage.take(usage, at_start=False)

    def _start_block(self, index: object, block: object) -> str:
        if not _is_index(index) or not isinstance(block, dict):
            return ""
        self.has_begun = self.output_seen = True
        self._usage.begun.take_block(block)
        if "usage" in block:
            self._usage.take_unexpected(block["usage"], place=f"content_block {index}")
        if block.get("type") == "fallback" and isinstance(block.get("to"), dict):
            self._usage.take_model(block["to"].get("model"), fell_back=True)
        self._blocks[index] = block if self._keeps_content else {}
        return str(block.get("text") or "") if block.get("type") == "text" else ""

    def _take_delta(self, event: dict[str, Any]) -> str:
        index, delta = event.get("index"), event.get("delta")
        if not _is_index(index) or index not in self._blocks or not isinstance(delta, dict):
            return ""
        self.output_seen = True
        self._usage.begun.take_delta(delta)
        if "usage" in delta:
            self._usage.take_unexpected(delta["usage"], place="content_block_delta")
        kind = delta.get("type")
        if not self._keeps_content:
            return ""
        if kind == "input_json_delta":
            part = str(delta.get("partial_json") or "")
            self._json_parts.setdefault(index, []).append(part)
        elif kind == "citations_delta":
            self._blocks[index].setdefault("citations", []).append(delta.get("citation"))
        elif isinstance(kind, str) and kind in _TEXT_PARTS:
            part = str(delta.get(_TEXT_PARTS[kind]) or "")
            self._text_parts.setdefault(index, {}).setdefault(_TEXT_PARTS[kind], []).append(part)
            return part if kind == "text_delta" else ""
        return ""


def _is_index(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 10_000


def _parse_input(text: str, *, otherwise: object) -> Any:
    """Parse a tool's input, which is incomplete if the answer was cut off. What cannot be parsed stays text."""
    if not text:
        return otherwise if otherwise is not None else {}
    try:
        return read_storable(text)
    except (ValueError, RecursionError):
        return {"_unparsed": text}
