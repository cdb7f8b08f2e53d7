"""
An answer assembled from the events of a stream.

https://platform.claude.com/docs/en/build-with-claude/streaming
"""

import json
from typing import Any

_TEXTS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
_COUNTS = {
    "input_tokens": "inputTokens",
    "output_tokens": "outputTokens",
    "cache_read_input_tokens": "cacheReadTokens",
    "thinking_tokens": "thinkingTokens",
}


# What the server takes.
REPORTS_MAX = 16
MODEL_CHARACTERS_MAX = 128


class Answer:
    """The answer received so far. A new start, such as that of a retry, discards the previous one."""

    def __init__(self) -> None:
        self.stop_reason = ""
        self.is_complete = False
        self.is_begun = False
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}
        self._counts: dict[str, int] = {}
        self._model = ""
        self._reports: list[dict[str, Any]] = []

    def take(self, event: dict[str, Any]) -> str:
        """Add an event, and return its text."""
        match event.get("type"):
            case "message_start":
                self.__init__()  # type: ignore[misc]
                self.is_begun = True
                message = _object(event.get("message"))
                self._model = str(message.get("model") or "")[:MODEL_CHARACTERS_MAX]
                self._reports.append(_object(message.get("usage")))
                self._count(self._reports[0])
            case "content_block_start" if type(event.get("index")) is int:
                block = self._blocks[event["index"]] = dict(_object(event.get("content_block")))
                return str(block.get("text") or "")
            case "content_block_delta" if type(event.get("index")) is int:
                return self._add(event["index"], _object(event.get("delta")))
            case "message_delta":
                self.stop_reason = str(_object(event.get("delta")).get("stop_reason") or "") or self.stop_reason
                self._add_report(_object(event.get("usage")))
            case "message_stop":
                self.is_complete = True
        return ""

    @property
    def text(self) -> str:
        return "".join(str(block.get("text", "")) for block in self.content() if block.get("type") == "text")

    def content(self) -> list[dict[str, Any]]:
        blocks = [dict(self._blocks[index]) for index in sorted(self._blocks)]
        for block, index in zip(blocks, sorted(self._blocks), strict=True):
            if self._inputs.get(index):
                block["input"] = json.loads(self._inputs[index])
        return blocks

    def usage(self) -> dict[str, int] | None:
        """The counts in the server's format; None as long as the provider has reported nothing."""
        if not self._counts:
            return None
        usage = {ours: self._counts.get(theirs, 0) for theirs, ours in _COUNTS.items()}
        written = self._counts.get("cache_creation_input_tokens", 0)
        # Without a split by lifetime, everything was written with the default of five minutes.
        usage["cacheWrite1hTokens"] = min(self._counts.get("ephemeral_1h_input_tokens", 0), written)
        usage["cacheWrite5mTokens"] = written - usage["cacheWrite1hTokens"]
        return usage

    def told(self) -> dict[str, Any] | None:
        """What the answer tells of its model and its usage, unchanged: the server reads more of it than the counts."""
        return {"model": self._model, "reports": self._reports} if any(self._reports) else None

    def output(self) -> dict[str, Any]:
        return {"text": self.text, "content": self.content(), "stopReason": self.stop_reason}

    def _add(self, index: int, delta: dict[str, Any]) -> str:
        kind = str(delta.get("type"))
        block = self._blocks.setdefault(index, {"type": "text", "text": ""})
        if kind == "input_json_delta":
            self._inputs[index] = self._inputs.get(index, "") + str(delta.get("partial_json") or "")
        elif kind in _TEXTS:
            part = str(delta.get(_TEXTS[kind]) or "")
            block[_TEXTS[kind]] = str(block.get(_TEXTS[kind]) or "") + part
            return part if kind == "text_delta" else ""
        return ""

    def _add_report(self, usage: dict[str, Any]) -> None:
        if usage:
            # They are cumulative, so of more than any answer has, the newest replaces the last.
            del self._reports[REPORTS_MAX - 1 :]
            self._reports.append(usage)
            self._count(usage)

    def _count(self, usage: dict[str, Any]) -> None:
        """Update the counts. They are cumulative, so the highest report of each is kept."""
        found = dict(usage)
        for part in ("cache_creation", "output_tokens_details"):
            found.update(_object(usage.get(part)))
        for name, value in found.items():
            if type(value) is int:
                self._counts[name] = max(value, self._counts.get(name, 0))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
