"""
The reply as server-sent events.

Source of the events and their order: https://platform.claude.com/docs/en/build-with-claude/streaming
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rensei.simulator.directives import LineEnd

_WORDS_PER_DELTA = 3
_JSON_PIECE_CHARACTERS = 12
_OF_THE_END = frozenset({"output_tokens_details", "iterations", "fallback_credit"})
_OF_THE_START = frozenset({"cache_creation", "service_tier", "inference_geo", "speed"})


@dataclass(frozen=True, kw_only=True)
class Event:
    name: str
    data: dict[str, Any]

    @property
    def is_delta(self) -> bool:
        return self.name == "content_block_delta"

    def encode(self, *, line_end: LineEnd = "lf") -> bytes:
        text = f"event: {self.name}\ndata: {json.dumps(self.data)}\n\n"
        if line_end == "open" and self.name == "message_stop":
            text = text.rstrip("\n")
        return text.replace("\n", {"cr": "\r", "crlf": "\r\n"}.get(line_end, "\n")).encode()


def error_event(*, kind: str, message: str, request_id: str) -> Event:
    """Create the event by which a stream fails after its status 200 has been sent."""
    error = {"type": kind, "message": message}
    return Event(name="error", data={"type": "error", "error": error, "request_id": request_id})


def stream_events(
    message: dict[str, Any], *, more_deltas: Iterable[dict[str, Any]] = (), unknown_events: bool = False
) -> Iterator[Event]:
    """
    Split a finished message into the events of a stream.

    :param more_deltas: members of further `message_delta` events, which follow the true one
    :param unknown_events: also send unknown kinds of events, blocks and deltas, which clients must skip
    """
    yield _message_start(message)
    yield Event(name="ping", data={"type": "ping"})
    if unknown_events:
        yield Event(name="made_up_event", data={"type": "made_up_event", "value": 1})
    for index, block in enumerate(message["content"]):
        yield from _block_events(block, index=index)
    if unknown_events:
        yield from _unknown_block(index=len(message["content"]))
    yield _message_delta(message)
    for more in more_deltas:
        yield Event(name="message_delta", data={"type": "message_delta", "delta": {}, **more})
    yield Event(name="message_stop", data={"type": "message_stop"})


def _message_start(message: dict[str, Any]) -> Event:
    start = {**message, "content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None}
    if usage := message.get("usage"):
        # The values before the first token: all of the input, and a placeholder for the output.
        start["usage"] = {key: value for key, value in usage.items() if key not in _OF_THE_END}
        start["usage"]["output_tokens"] = min(1, usage["output_tokens"])
    return Event(name="message_start", data={"type": "message_start", "message": start})


def _message_delta(message: dict[str, Any]) -> Event:
    data: dict[str, Any] = {
        "type": "message_delta",
        "delta": {name: message[name] for name in ("stop_reason", "stop_sequence", "stop_details")},
    }
    if usage := message.get("usage"):
        # Cumulative; never the split of cache writes by time to live, the tier, the region or the speed.
        data["usage"] = {key: value for key, value in usage.items() if key not in _OF_THE_START}
    return Event(name="message_delta", data=data)


def _block_events(block: dict[str, Any], *, index: int) -> Iterator[Event]:
    match block["type"]:
        case "thinking":
            start = {**block, "thinking": "", "signature": ""}
            pieces = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(block["thinking"])]
            pieces.append({"type": "signature_delta", "signature": block["signature"]})
        case "tool_use" | "server_tool_use":
            start = {**block, "input": {}}
            pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in _json_pieces(block["input"])]
        case "compaction":
            start = {**block, "content": None}
            pieces = [{"type": "compaction_delta", "content": block["content"]}]
        case "text":
            start = {**block, "text": "", **({"citations": []} if "citations" in block else {})}
            pieces = [{"type": "text_delta", "text": piece} for piece in _pieces(block["text"])]
            pieces += [{"type": "citations_delta", "citation": citation} for citation in block.get("citations", [])]
        case _:
            start, pieces = block, []

    yield Event(
        name="content_block_start", data={"type": "content_block_start", "index": index, "content_block": start}
    )
    for delta in pieces:
        yield Event(name="content_block_delta", data={"type": "content_block_delta", "index": index, "delta": delta})
    yield Event(name="content_block_stop", data={"type": "content_block_stop", "index": index})


def _pieces(text: str) -> list[str]:
    words = re.findall(r"\s*\S+\s*$|\s*\S+", text)
    return ["".join(words[i : i + _WORDS_PER_DELTA]) for i in range(0, len(words), _WORDS_PER_DELTA)]


def _json_pieces(value: Any) -> list[str]:
    text = json.dumps(value)
    pieces = [text[i : i + _JSON_PIECE_CHARACTERS] for i in range(0, len(text), _JSON_PIECE_CHARACTERS)]
    # The real stream begins with an empty piece.
    return ["", *pieces]


def _unknown_block(*, index: int) -> Iterator[Event]:
    block = {"type": "made_up_block", "value": ""}
    delta = {"type": "made_up_delta", "value": "x"}
    yield Event(
        name="content_block_start", data={"type": "content_block_start", "index": index, "content_block": block}
    )
    yield Event(name="content_block_delta", data={"type": "content_block_delta", "index": index, "delta": delta})
    yield Event(name="content_block_stop", data={"type": "content_block_stop", "index": index})
