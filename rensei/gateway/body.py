"""
The body of a request: its values for the decision, and its original bytes to forward.

Only necessary changes are made, in place in the text, so that everything else is forwarded as the caller wrote it.
"""

import json
import re
from collections.abc import Collection
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

import orjson
from django.utils.functional import cached_property

from integrations.providers.anthropic.server_tools import PlacedTools, placed_tools
from integrations.providers.anthropic.unknown import Unknown, unknown_in
from rensei.core.errors import FieldError, json_pointer
from rensei.core.json_body import parse_object
from rensei.core.json_check import check_apart

NAME_CHARACTERS_MAX = 300
# The text before a member's name, and between the name and the value; the white space at the end.
# https://www.rfc-editor.org/rfc/rfc8259#section-2
_BEFORE_NAME = re.compile(r'[ \t\n\r]*[{,][ \t\n\r]*"')
_BEFORE_VALUE = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_WHITE_SPACE = " \t\n\r"
_scan_value = json.JSONDecoder().raw_decode
_encode_exactly = json.JSONEncoder(allow_nan=False).encode


class Body:
    """A JSON object, and the bytes from which it was parsed."""

    def __init__(self, raw: bytes, values: dict[str, Any]) -> None:
        self.raw = raw
        self.values = values

    @cached_property
    def unknown(self) -> Unknown:
        """What it holds that is not known. It is found once for each body."""
        return unknown_in(self.values)

    @cached_property
    def tools(self) -> PlacedTools:
        """The tools that it declares, including those defined in its messages, each with its place."""
        return placed_tools(self.values)

    def may_hold(self, name: bytes) -> bool:
        """Return whether a member may have this name, at any depth. False is certain: a name may be escaped."""
        return self._has_escapes or name in self.raw

    @cached_property
    def _has_escapes(self) -> bool:
        # One byte is found several times as fast as two.
        return b"\\" in self.raw and b"\\u" in self.raw

    @classmethod
    def read(cls, raw: bytes) -> "Body":
        """:raises FieldError: if it is not a JSON object, repeats a name, or exceeds the limits of the JSON parser"""
        check_apart(raw, is_stored=False)
        return cls(raw, parse_object(raw))

    def with_values(self, **changed: Any) -> "Body":
        """Return a body in which these members have other values. A missing member is added at the end."""
        text = self.raw.decode()
        spans = _find_members(text, changed.keys() & self.values.keys())
        pieces, at = [], 0
        for start, stop, name in sorted((*spans[name], name) for name in spans):
            pieces += [text[at:start], _encode(changed[name])]
            at = stop
        end = len(text.rstrip(_WHITE_SPACE).removesuffix("}").rstrip(_WHITE_SPACE))
        pieces.append(text[at:end])
        separator = ", " if self.values else ""
        for name in changed:
            if name not in spans:
                pieces.append(f"{separator}{_encode(name)}: {_encode(changed[name])}")
                separator = ", "
        pieces.append(text[end:])
        return Body("".join(pieces).encode(), {**self.values, **changed})

    def forget_values(self) -> None:
        """Keep the bytes alone, while the provider answers: values may take many times as much memory."""
        self.values = {}

    def name_of(self, member: str) -> str:
        """
        Read a member that is a name.

        :raises FieldError: if the member is missing, or is not a valid name
        """
        return checked_name(self.values.get(member), pointer=json_pointer(member))


def checked_name(value: object, *, pointer: str) -> str:
    """:raises FieldError: if a value is not a valid name, for example a lone surrogate or a very long text"""
    if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARACTERS_MAX or not value.isprintable():
        raise FieldError(pointer=pointer, reason=f"`{pointer.rpartition('/')[2]}` is required, and is a name.")
    return value


def _encode(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        # It takes no lone surrogates, and no integers of more than 64 bits.
        return _encode_exactly(value)


def _find_members(text: str, names: Collection[str]) -> dict[str, tuple[int, int]]:
    """Find where the values of these members begin and end. The text must be a valid JSON object that has them all."""
    spans: dict[str, tuple[int, int]] = {}
    at = 0
    while len(spans) < len(names):
        before = _BEFORE_NAME.match(text, at)
        assert before is not None
        name, at = scanstring(text, before.end())
        between = _BEFORE_VALUE.match(text, at)
        assert between is not None
        _, at = _scan_value(text, between.end())
        if name in names:
            spans[name] = (between.end(), at)
    return spans
