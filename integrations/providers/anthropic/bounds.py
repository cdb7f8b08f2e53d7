"""
The most that a request may be charged for: an upper bound of its prompt, and of what servers may add to it.

A token is never shorter than a byte, so the bytes of a request's JSON bound its content: block types, names
and ids, which the API does not count, cover the few tokens that frame messages and blocks. Anthropic's published
tokenizer first converts text to the normal form NFKC, which may lengthen it, so the longer of both forms counts.
Three things are not in the JSON and have their own bounds: images, which the API scales down before it counts them;
tools that the API identifies by name, whose descriptions it writes itself; and content that is only referenced or is
encoded, such as documents by URL, files by id and PDFs, whose pages are text and images of any density. The last
are bounded by the context window, like the whole prompt: a longer prompt is refused, and costs nothing.

Sources: https://platform.claude.com/docs/en/build-with-claude/vision, …/pdf-support, …/token-counting and
…/agents-and-tools/tool-use/overview; https://github.com/anthropics/anthropic-tokenizer-typescript
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

from django.utils.functional import cached_property

from integrations.providers.anthropic import server_tools
from integrations.providers.anthropic.server_tools import Most, PlacedTools, placed_tools
from integrations.providers.anthropic.tokens import KNOWN_FIELDS, objects_in, tokens_at_least
from integrations.providers.anthropic.unknown import Unknown, unknown_in

TOKENS_PER_IMAGE_MAX = 4784
# If a model's window is unknown: 600 pages of a PDF, the most that a request accepts, with 5,000 tokens each.
WINDOW_UNKNOWN_TOKENS = 600 * 5000
_FRAME_TOKENS_MAX = 16
# The documented maxima are 804 for the use of tools, and 1,235 for a tool that the API describes itself.
_TOOL_USE_TOKENS_MAX = 2000
_TOKENS_PER_KNOWN_TOOL_MAX = 2000
# Instructions added for the schema of a structured answer.
_FORMAT_TOKENS_MAX = 1000
# With many backslashes, a search by regular expression is three times as fast as `in`.
_ESCAPE = re.compile(rb"\\u")


@dataclass(kw_only=True)
class _Outside:
    """What a request holds besides text: images, external content, and the bytes of both within its JSON."""

    images: int = 0
    fills_window: bool = False
    bytes_within: int = 0


class PromptBounds:
    """
    Lower and upper bounds of a request's prompt tokens, each counted on first use.

    :param raw: the request's JSON as it is sent; without it, the parameters are serialized again
    :param unknown, tools: what the request holds that is not known, and the tools that it declares; without them,
        they are looked for
    :param window: the context window of the serving model, in tokens; None if it is unknown
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        *,
        raw: bytes | None = None,
        unknown: Unknown | None = None,
        tools: PlacedTools | None = None,
        window: int | None,
    ) -> None:
        self._params = params
        self._raw = raw
        self._unknown = unknown
        self._placed_tools = tools
        self._window = window or WINDOW_UNKNOWN_TOKENS

    @cached_property
    def at_least(self) -> int:
        """For refusals: never above the API's count."""
        return tokens_at_least(self._params)

    @property
    def at_most(self) -> int:
        """For holds: never below the API's count."""
        held = self._held
        return self._window if held is None else min(self._window, held)

    def for_window(self, window: int | None) -> Self:
        """Return the bounds of the same prompt for a model with another window, reusing the counts."""
        bounds = copy(self)
        bounds._window = window or WINDOW_UNKNOWN_TOKENS  # noqa: SLF001 - of its own class
        return bounds

    def of_call(self, *, max_tokens: int, max_output_tokens: int | None) -> Most:
        """Bound the whole call, including every turn that the server may take for it."""
        return server_tools.most_of_call(
            self._params,
            self.tools,
            prompt_tokens=self.at_most,
            window=self._window,
            max_tokens=max_tokens,
            max_output_tokens=max_output_tokens,
        )

    @cached_property
    def tools(self) -> list[dict[str, Any]]:
        """The tools that the request declares, including those defined in its messages."""
        placed = placed_tools(self._params) if self._placed_tools is None else self._placed_tools
        return [tool for _, tool in placed]

    @cached_property
    def _held(self) -> int | None:
        """An upper bound of the request's content; None if it may fill the window."""
        outside = self._outside()
        if outside.fills_window:
            return None
        known = _FRAME_TOKENS_MAX + self._text_bytes() - outside.bytes_within + outside.images * TOKENS_PER_IMAGE_MAX
        return known + self._described_tokens()

    def _outside(self) -> _Outside:
        unknown = self._unknown or unknown_in(self._params)
        # What is not known may bring in as much as the window holds.
        outside = _Outside(fills_window=bool(self._params.keys() - KNOWN_FIELDS or unknown.names))
        for message in objects_in(self._params.get("messages")):
            if type(content := message.get("content")) is not str:
                _look_into(content, outside)
        _look_into(self._params.get("system"), outside)
        return outside

    def _text_bytes(self) -> int:
        raw = self._raw
        if raw is None:
            raw = _encoded(json.dumps(self._params, ensure_ascii=False))
        escaped = _ESCAPE.search(raw)
        if raw.isascii() and not escaped:
            return len(raw)
        # Escapes must be decoded before the text can be normalized.
        text = json.dumps(self._params, ensure_ascii=False) if escaped else raw.decode(errors="surrogatepass")
        return max(len(raw), len(_encoded(unicodedata.normalize("NFKC", text))))

    def _described_tokens(self) -> int:
        """Bound what the API itself adds to the prompt."""
        config = self._params.get("output_config")
        has_format = "output_format" in self._params or (isinstance(config, dict) and "format" in config)
        tokens = _FORMAT_TOKENS_MAX if has_format else 0
        if self.tools:
            known = sum(tool.get("type") not in (None, "custom") for tool in self.tools)
            tokens += _TOOL_USE_TOKENS_MAX + known * _TOKENS_PER_KNOWN_TOOL_MAX
        return tokens


def _look_into(found: Any, outside: _Outside) -> None:
    """Find the images and documents in content, including those in tool results."""
    if isinstance(found, str):
        return
    waiting = [found]
    while waiting:
        for block in objects_in(waiting.pop()):
            kind = str(block.get("type"))
            if kind == "image":
                outside.images += 1
                outside.bytes_within += _bytes_of_data(block.get("source"))
            elif kind == "document":
                waiting += _document_content(block.get("source"), outside)
            elif kind == "container_upload":
                outside.fills_window = True
            elif isinstance(content := block.get("content"), dict | list):
                waiting.append(content if isinstance(content, list) else [content])


def _document_content(source: Any, outside: _Outside) -> list[Any]:
    match source:
        case {"type": "text", "data": str()} | {"type": "content", "content": str()}:
            return []
        case {"type": "content", "content": list(content)}:
            return [content]
    outside.fills_window = True
    return []


def _bytes_of_data(source: Any) -> int:
    match source:
        case {"type": "base64", "data": str(data)}:
            return len(data)
    return 0


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
