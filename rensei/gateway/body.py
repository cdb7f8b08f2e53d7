"""
The body of a request as it came: its values to decide by, and its text to send on.

Only what has to change is changed, at its place in the text, so that everything else arrives as the caller wrote it.
"""

import json
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from rensei.core.errors import FieldError, json_pointer

# https://www.rfc-editor.org/rfc/rfc8259#section-2
_WHITE_SPACE = " \t\n\r"
_decode = json.JSONDecoder().raw_decode


class Body:
    """A JSON object, and where in its text each of its members stands."""

    def __init__(self, raw: bytes) -> None:
        """:raises FieldError: if it is not a JSON object, or names a member twice"""
        self.raw = raw
        self.values: dict[str, Any] = {}
        self._spans: dict[str, tuple[int, int]] = {}
        try:
            self._text = raw.decode()
            self._end = self._read_members()
        except (ValueError, RecursionError, IndexError) as fault:
            raise FieldError(pointer="", reason="The body is not a JSON object.") from fault

    def with_values(self, **changed: Any) -> "Body":
        """Make a body in which these members have other values. A member that is not there is added at the end."""
        pieces, at = [], 0
        known = sorted((self._spans[name], name) for name in changed if name in self._spans)
        for (start, end), name in known:
            pieces += [self._text[at:start], json.dumps(changed[name])]
            at = end
        pieces.append(self._text[at : self._end])
        separator = ", " if self.values else ""
        for name in changed:
            if name not in self._spans:
                pieces.append(f"{separator}{json.dumps(name)}: {json.dumps(changed[name])}")
                separator = ", "
        pieces.append(self._text[self._end :])
        return Body("".join(pieces).encode())

    def text_of(self, name: str) -> str:
        """
        Read a member that must be a text.

        :raises FieldError: if it is missing or something else
        """
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            raise FieldError(pointer=json_pointer(name), reason=f"`{name}` is required, and is a text.")
        return value

    def _read_members(self) -> int:
        """Read the object, and tell where it ends. Two readers would each believe another one of two equal names."""
        text, at = self._text, self._skip(0)
        self._expect("{", at)
        at = self._skip(at + 1)
        if text[at] == "}":
            self._expect_nothing_after(at)
            return at
        while True:
            self._expect('"', at)
            name, at = scanstring(text, at + 1)
            at = self._skip(at)
            self._expect(":", at)
            start = self._skip(at + 1)
            value, end = _decode(text, start)
            if name in self.values:
                raise FieldError(pointer=json_pointer(name), reason=f"The name '{name}' is given twice. Keep one.")
            self.values[name], self._spans[name] = value, (start, end)
            at = self._skip(end)
            if text[at] == "}":
                self._expect_nothing_after(at)
                return end
            self._expect(",", at)
            at = self._skip(at + 1)

    def _skip(self, at: int) -> int:
        while self._text[at] in _WHITE_SPACE:
            at += 1
        return at

    def _expect(self, character: str, at: int) -> None:
        if self._text[at] != character:
            raise ValueError(character)

    def _expect_nothing_after(self, at: int) -> None:
        if self._text[at + 1 :].strip(_WHITE_SPACE):
            raise ValueError
