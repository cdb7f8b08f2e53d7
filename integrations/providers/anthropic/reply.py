"""
An answer put together from the events of a stream, by a reader that trusts none of them.

Source of the events: https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from typing import Any, TypeGuard

from integrations.providers.anthropic.tokens import tokens_about_bytes
from rensei.core.texts import read_storable
from rensei.core.usage import Usage

# Far above what any model takes or gives, and far below what would upset a ledger.
_TOKENS_MAX = 20_000_000
_TEXT_PARTS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
}


class Reply:
    """What has come of an answer so far: its content, its usage, and whether the usage can be believed."""

    def __init__(self, *, input_tokens_about: int, keeps_content: bool = True) -> None:
        self.stop_reason = ""
        self.is_complete = False
        self.output_seen = False
        self._input_tokens_about = input_tokens_about
        self._keeps_content = keeps_content
        self._output_bytes = 0
        self._blocks: dict[int, dict[str, Any]] = {}
        self._json_parts: dict[int, list[str]] = {}
        self._text_parts: dict[tuple[int, str], list[str]] = {}
        self._reported: dict[str, int] = {}
        self._output_reported = False
        self._usage_absurd = False

    def take(self, event: dict[str, Any]) -> str:
        """Add an event, and return the text that it brings. Kinds that we do not know are skipped."""
        match event.get("type"):
            case "message_start":
                message = event.get("message")
                self._take_usage(message.get("usage") if isinstance(message, dict) else None, is_final=False)
            case "content_block_start":
                return self._start_block(event)
            case "content_block_delta":
                return self._take_delta(event)
            case "message_delta":
                delta = event.get("delta")
                told = (delta if isinstance(delta, dict) else {}).get("stop_reason")
                self.stop_reason = str(told or "") or self.stop_reason
                self._take_usage(event.get("usage"), is_final=True)
            case "message_stop":
                self.is_complete = True
        return ""

    def take_message(self, message: dict[str, Any]) -> None:
        """Take an answer that came whole."""
        content = message.get("content")
        for index, block in enumerate(content if isinstance(content, list) else []):
            self.take({"type": "content_block_start", "index": index, "content_block": block})
            if isinstance(block, dict):
                self._count(str(block.get("text") or block.get("thinking") or ""))
        self.take({"type": "message_delta", "delta": message, "usage": message.get("usage")})
        self.is_complete = message.get("type") == "message"

    @property
    def text(self) -> str:
        return "".join(block.get("text", "") for block in self.content() if block.get("type") == "text")

    def content(self) -> list[dict[str, Any]]:
        """Build the content blocks, in their order."""
        blocks = []
        for index in sorted(self._blocks):
            block = dict(self._blocks[index])
            for (owner, name), parts in self._text_parts.items():
                if owner == index:
                    block[name] = str(block.get(name) or "") + "".join(parts)
            if index in self._json_parts:
                block["input"] = _parse_input("".join(self._json_parts[index]), otherwise=block.get("input"))
            blocks.append(block)
        return blocks

    @property
    def has_usage(self) -> bool:
        """Tell whether the provider has said how large the prompt was."""
        return "input_tokens" in self._reported and not self._usage_absurd

    @property
    def usage_estimated(self) -> bool:
        return self._usage_absurd or not self._output_reported or "input_tokens" not in self._reported

    def usage(self) -> Usage:
        """
        Tell what was used: as reported, and estimated where nothing, or nothing believable, was reported.

        The count of output tokens at the start of a stream is a placeholder, so it never counts.
        """
        if self._usage_absurd or "input_tokens" not in self._reported:
            return Usage(input_tokens=self._input_tokens_about, output_tokens=self._output_tokens_about())
        if self.stop_reason == "refusal" and not self._blocks:
            # A refusal before any output shows counts but is not billed:
            # https://platform.claude.com/docs/en/test-and-evaluate/strengthen-guardrails/handle-streaming-refusals
            return Usage()
        told = dict(self._reported)
        if not self._output_reported:
            told["output_tokens"] = self._output_tokens_about()
        written = told.pop("cache_creation_input_tokens", 0)
        written_1h = min(told.pop("ephemeral_1h_input_tokens", 0), written)
        return Usage(
            input_tokens=told["input_tokens"],
            output_tokens=told.get("output_tokens", 0),
            cache_read_tokens=told.get("cache_read_input_tokens", 0),
            # Without a split by lifetime, everything was written for the five minutes of the default.
            cache_write_5m_tokens=written - written_1h,
            cache_write_1h_tokens=written_1h,
            thinking_tokens=min(told.get("thinking_tokens", 0), told.get("output_tokens", 0)),
            web_search_requests=told.get("web_search_requests", 0),
        )

    def _start_block(self, event: dict[str, Any]) -> str:
        index, block = event.get("index"), event.get("content_block")
        if not _is_index(index) or not isinstance(block, dict):
            return ""
        self.output_seen = True
        self._blocks[index] = block if self._keeps_content else {}
        return str(block.get("text") or "") if block.get("type") == "text" else ""

    def _take_delta(self, event: dict[str, Any]) -> str:
        index, delta = event.get("index"), event.get("delta")
        if not _is_index(index) or index not in self._blocks or not isinstance(delta, dict):
            return ""
        self.output_seen = True
        kind = delta.get("type")
        if not self._keeps_content:
            self._count(str(delta.get("text") or delta.get("partial_json") or delta.get("thinking") or ""))
        elif kind == "input_json_delta":
            part = str(delta.get("partial_json") or "")
            self._count(part)
            self._json_parts.setdefault(index, []).append(part)
        elif kind == "citations_delta":
            self._blocks[index].setdefault("citations", []).append(delta.get("citation"))
        elif isinstance(kind, str) and kind in _TEXT_PARTS:
            part = str(delta.get(_TEXT_PARTS[kind]) or "")
            self._count(part)
            self._text_parts.setdefault((index, _TEXT_PARTS[kind]), []).append(part)
            return part if kind == "text_delta" else ""
        return ""

    def _take_usage(self, usage: object, *, is_final: bool) -> None:
        """Keep the highest count of each kind. Counts are cumulative, so one that is lower says nothing."""
        if not isinstance(usage, dict):
            return
        found = dict(usage)
        for part in ("cache_creation", "output_tokens_details", "server_tool_use"):
            inner = usage.get(part)
            found.update(inner if isinstance(inner, dict) else {})
        for name in (
            "input_tokens",
            "output_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
            "ephemeral_1h_input_tokens",
            "thinking_tokens",
            "web_search_requests",
        ):
            value = found.get(name)
            if value is None:
                continue
            if type(value) is not int or not 0 <= value <= _TOKENS_MAX:
                self._usage_absurd = True
                continue
            if name == "output_tokens":
                if not is_final:
                    # At the start of a stream it is a placeholder.
                    continue
                self._output_reported = True
            self._reported[name] = max(value, self._reported.get(name, 0))

    def _count(self, part: str) -> None:
        self._output_bytes += len(part.encode(errors="replace"))

    def _output_tokens_about(self) -> int:
        return tokens_about_bytes(self._output_bytes)


def _is_index(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 10_000


def _parse_input(text: str, *, otherwise: object) -> Any:
    """Parse a tool's input, which is cut short where the answer was. What cannot be parsed is kept as it came."""
    if not text:
        return otherwise if otherwise is not None else {}
    try:
        return read_storable(text)
    except (ValueError, RecursionError):
        return {"_unparsed": text}
