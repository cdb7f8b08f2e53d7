"""
The prompt cache: which part of a prompt was sent before, with which key, and how long it is kept.

Source of the rules: https://platform.claude.com/docs/en/build-with-claude/prompt-caching
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rensei.simulator.model_facts import Model
from rensei.simulator.tokens import TOKENS_OF_TOOL_USE, TOKENS_PER_MESSAGE, count_block, count_json, count_tool

_SECONDS = {"5m": 300, "1h": 3600}
_LOOK_BACK_BLOCKS = 20
_ENTRIES_MAX = 100_000


@dataclass(frozen=True, kw_only=True)
class PromptUsage:
    """The tokens of one prompt in three classes, which do not overlap."""

    input_tokens: int
    written_5m_tokens: int = 0
    written_1h_tokens: int = 0
    read_tokens: int = 0

    @property
    def total(self) -> int:
        return self.input_tokens + self.written_5m_tokens + self.written_1h_tokens + self.read_tokens


@dataclass(kw_only=True)
class Segment:
    """One block of a prompt: the digest and tokens of the prefix up to its end, and how long to keep that prefix."""

    digest: str
    tokens_up_to_here: int
    ttl: str | None = None


@dataclass(kw_only=True)
class _Entry:
    ttl: str
    expires_at: float


class PromptCache:
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def clear(self) -> None:
        self._entries.clear()

    def use(self, segments: list[Segment], *, model: Model) -> PromptUsage:
        """Read the cached prefix of this prompt, write the marked ones, and return its tokens by class."""
        total = segments[-1].tokens_up_to_here
        minimum = model.min_cache_tokens or 1024
        marked = [
            index for index, segment in enumerate(segments) if segment.ttl and segment.tokens_up_to_here >= minimum
        ]
        if not marked:
            return PromptUsage(input_tokens=total)

        read = self._read(segments, marked=marked)
        last = segments[marked[-1]].tokens_up_to_here
        last_1h = max((segments[i].tokens_up_to_here for i in marked if segments[i].ttl == "1h"), default=0)
        for index in marked:
            self._write(segments[index])
        return PromptUsage(
            input_tokens=total - max(last, read),
            written_1h_tokens=max(0, last_1h - read),
            written_5m_tokens=max(0, last - max(last_1h, read)),
            read_tokens=read,
        )

    def _read(self, segments: list[Segment], *, marked: list[int]) -> int:
        now = self._clock()
        for breakpoint_ in reversed(marked):
            for index in range(breakpoint_, max(-1, breakpoint_ - _LOOK_BACK_BLOCKS - 1), -1):
                entry = self._entries.get(segments[index].digest)
                if entry and entry.expires_at > now:
                    entry.expires_at = now + _SECONDS[entry.ttl]
                    return segments[index].tokens_up_to_here
        return 0

    def _write(self, segment: Segment) -> None:
        """Store a marked prefix, for the longer of its new and its earlier lifetime."""
        now = self._clock()
        ttl = segment.ttl or "5m"
        held = self._entries.get(segment.digest)
        if held and held.expires_at > now:
            ttl = max(ttl, held.ttl, key=_SECONDS.__getitem__)
        self._drop_expired(now=now)
        self._entries[segment.digest] = _Entry(ttl=ttl, expires_at=now + _SECONDS[ttl])

    def _drop_expired(self, *, now: float) -> None:
        """Drop expired entries, so that the cache does not grow without bound under load."""
        if len(self._entries) > _ENTRIES_MAX:
            self._entries = {digest: entry for digest, entry in self._entries.items() if entry.expires_at > now}


def cut_prompt(body: dict[str, Any], *, model: Model, key_sha256: str) -> list[Segment]:
    """Split a prompt into blocks in prefix order: tools, system, messages."""
    start = _mix("", [key_sha256, model.id, body.get("speed")])
    described = TOKENS_OF_TOOL_USE if body.get("tools") else 0
    if form := (body.get("output_config") or {}).get("format"):
        described += count_json(form)
    segments = [Segment(digest=start, tokens_up_to_here=described)]

    def add(block: dict[str, Any], *, tokens: int, context: list[Any] | None = None) -> None:
        bare = {key: value for key, value in block.items() if key != "cache_control"}
        control = block.get("cache_control")
        segments.append(
            Segment(
                digest=_mix(segments[-1].digest, [context, bare]),
                tokens_up_to_here=segments[-1].tokens_up_to_here + tokens,
                ttl=control.get("ttl", "5m") if control else None,
            )
        )

    for tool in body.get("tools") or []:
        add(tool, tokens=count_tool(tool))
    for block in _blocks(body.get("system") or []):
        add(block, tokens=count_block(block, model=model))

    # With another value of one of these three, no message is found in the cache.
    effort = (body.get("output_config") or {}).get("effort")
    settings = [body.get("tool_choice"), body.get("thinking"), effort]
    for message in body["messages"]:
        context, overhead = [settings, message["role"]], TOKENS_PER_MESSAGE
        for block in _blocks(message["content"]):
            add(block, tokens=overhead + count_block(block, model=model), context=context)
            context, overhead = [], 0

    if body.get("cache_control"):
        segments[-1].ttl = segments[-1].ttl or body["cache_control"].get("ttl", "5m")
    return segments


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _mix(before: str, value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()
