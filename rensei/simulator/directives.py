"""Directives in a prompt, in double square brackets: `[[reply 200 words]]`, `[[fault:overloaded]]`."""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from rensei.simulator.errors import ApiError

# `open` omits the empty line that ends the last event.
LineEnd = Literal["lf", "crlf", "cr", "open"]
_DIRECTIVE = re.compile(r"\[\[\s*(fault:\s*)?([a-z0-9_-]+)\s*(.*?)\s*\]\]", re.DOTALL)

_DELAY_SECONDS_MAX = 3600.0


@dataclass(frozen=True, kw_only=True)
class FaultDirective:
    name: str
    options: dict[str, str]

    def number(self, option: str, default: int) -> int:
        """
        Read an option as a number.

        :raises ApiError: if it is not a number
        """
        text = self.options.get(option, str(default))
        if not text.isdecimal():
            raise ApiError(400, f"The simulator cannot read {option}={text} of the fault '{self.name}'.")
        return int(text)


@dataclass(kw_only=True)
class Directives:
    faults: list[FaultDirective] = field(default_factory=list)
    reply_words: int | None = None
    echo: str | None = None
    delay_seconds: float = 0.0
    stall_after: int | None = None
    stop_reason: str | None = None
    tool: str | None = None
    tool_input: dict[str, Any] | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    serves: str | None = None
    more_blocks: list[dict[str, Any]] = field(default_factory=list)
    more_deltas: list[dict[str, Any]] = field(default_factory=list)
    encoding: str | None = None
    line_end: LineEnd = "lf"
    text: str = ""


def read_directives(messages: list[dict[str, Any]]) -> Directives:
    """
    Read the directives of the last user message.

    Earlier turns are ignored, so that a fault does not repeat in later turns of a conversation.

    Brackets around an unknown word are part of the user's text.

    :raises ApiError: if a directive has a value that cannot be parsed
    """
    text = _last_user_text(messages)
    directives = Directives(text=text)
    for is_fault, name, rest in _DIRECTIVE.findall(text):
        if is_fault:
            options = dict(part.partition("=")[::2] for part in rest.split())
            directives.faults.append(FaultDirective(name=name, options=options))
        else:
            try:
                _apply(directives, name=name, rest=rest)
            except (TypeError, ValueError, IndexError):
                raise ApiError(400, f"The simulator cannot read the directive [[{name} {rest}]].") from None
    return directives


def _apply(directives: Directives, *, name: str, rest: str) -> None:
    match name:
        case "reply":
            directives.reply_words = int(rest.split()[0])
        case "echo":
            directives.echo = rest
        case "slow":
            directives.delay_seconds = _seconds(rest)
        case "stall":
            directives.stall_after = int(rest.partition("after=")[2] or 0)
        case "stop":
            directives.stop_reason = rest
        case "use":
            directives.tool, _, given = rest.partition(" ")
            directives.tool_input = _object(given) if given else None
        case "usage":
            directives.usage |= _object(rest)
        case "serve":
            directives.serves = rest
        case "block":
            directives.more_blocks.append(_object(rest))
        case "delta":
            directives.more_deltas.append(_object(rest))
        case "encode":
            directives.encoding = rest
        case "lines":
            directives.line_end = _line_end(rest)


def _object(text: str) -> dict[str, Any]:
    return {**json.loads(text)}


def _line_end(text: str) -> LineEnd:
    if text not in get_args(LineEnd):
        raise ValueError(f"{text} is no end of a line.")
    return cast("LineEnd", text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= _DELAY_SECONDS_MAX:
        raise ValueError(f"{text} seconds are not a delay.")
    return seconds


def _last_user_text(messages: list[dict[str, Any]]) -> str:
    for message in reversed(messages):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            return "\n".join(block["text"] for block in content if block["type"] == "text")
    return ""
