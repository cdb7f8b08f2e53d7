"""
What an answer has used since its last report of usage, counted from its content blocks and their deltas.

Output, the turns of tools that the provider runs, their searches and compactions are reported only at the end of a
stream. A stream that is stopped or breaks off before is charged for what was seen to begin.
Source: the types `BetaContentBlock` and `BetaRawContentBlockDelta` of the `anthropic` SDK.
"""

from collections.abc import Mapping
from typing import Any

from integrations.providers.anthropic.known import SERVER_RESULTS
from integrations.providers.anthropic.tokens import tokens_about_bytes
from integrations.providers.anthropic.usage_counts import TOKENS_MAX
from rensei.core.unknown import note_unknown

# The members of blocks and of deltas that are output of the model. Those of a kind that is not listed are all counted.
_OUTPUT: dict[object, tuple[str, ...]] = {
    "text": ("text",),
    "text_delta": ("text",),
    "thinking": ("thinking",),
    "thinking_delta": ("thinking",),
    "redacted_thinking": ("data",),
    "tool_use": ("input",),
    "server_tool_use": ("input",),
    "mcp_tool_use": ("input",),
    "input_json_delta": ("partial_json",),
    "compaction": ("content",),
    "compaction_delta": ("content",),
    "signature_delta": (),
    "citations_delta": (),
    "container_upload": (),
    "fallback": (),
    "mcp_tool_listing": (),
}
# Content that a tool of the provider adds to the prompt of the next turn.
RESULTS = SERVER_RESULTS | {"mcp_tool_result"}
# After each of these, the model reads the prompt again.
_NEXT_TURN = frozenset({"compaction", "mcp_tool_use", "server_tool_use"})
# The tools of the provider that cost nothing except for tokens.
FREE_TOOLS = frozenset(
    {
        "advisor",
        "bash_code_execution",
        "code_execution",
        "text_editor_code_execution",
        "tool_search_tool_bm25",
        "tool_search_tool_regex",
        "web_fetch",
    }
)
_NUMBER_BYTES = 8


class Begun:
    """Counts what has been seen. An unknown kind counts all of its members, and is counted by its name."""

    def __init__(self) -> None:
        self.turns = 0
        self.searches = 0
        self._output_bytes = 0
        self._result_bytes = 0
        # Of thinking that is not shown.
        self._thinking_tokens = 0

    @property
    def output_tokens(self) -> int:
        return tokens_about_bytes(self._output_bytes) + self._thinking_tokens

    @property
    def result_tokens(self) -> int:
        return tokens_about_bytes(self._result_bytes)

    @property
    def is_anything(self) -> bool:
        return bool(self._output_bytes or self._thinking_tokens or self._result_bytes or self.turns)

    def take_unread(self, size: int) -> None:
        self._output_bytes += size

    def take_delta(self, delta: Mapping[str, Any]) -> None:
        more = delta.get("estimated_tokens")
        if type(more) is int and more > 0:
            self._thinking_tokens = min(TOKENS_MAX, self._thinking_tokens + more)
        self._take(delta, unknown="delta_type")

    def take_block(self, block: Mapping[str, Any]) -> None:
        """Count a content block, which in a stream has only begun."""
        kind, name = (value if isinstance(value := block.get(member), str) else "" for member in ("type", "name"))
        if kind in RESULTS:
            self._result_bytes += _bytes_in(block.get("content"))
            return
        is_known = self._take(block, unknown="answer_block_type")
        is_tool = kind == "server_tool_use" or (not is_known and kind.endswith("tool_use"))
        self.turns += is_tool or kind in _NEXT_TURN
        self.searches += is_tool and name not in FREE_TOOLS

    def _take(self, part: Mapping[str, Any], *, unknown: str) -> bool:
        kind = part.get("type")
        members = _OUTPUT.get(kind) if isinstance(kind, str) else None
        if members is None:
            note_unknown(unknown, kind if isinstance(kind, str) else "(no name)")
            self._output_bytes += sum(_bytes_in(value) for name, value in part.items() if name != "type")
            return False
        for member in members:
            self._output_bytes += _bytes_in(part.get(member))
        return True


def _bytes_in(value: object) -> int:
    """Count the bytes of the texts and numbers of a JSON value of any depth."""
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    count, waiting = 0, [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += [*inner, *inner.values()]
        elif isinstance(inner, list):
            waiting += inner
        elif isinstance(inner, str):
            count += len(inner.encode(errors="replace"))
        elif inner is not None:
            count += _NUMBER_BYTES
    return count
