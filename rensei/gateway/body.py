"""
The body of a request as it came: its values to decide by, and its text to send on.

Only what has to change is changed, at its place in the text, so that everything else arrives as the caller wrote it.
"""

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from rensei.core.errors import FieldError, json_pointer

NAME_CHARACTERS_MAX = 300
# What stands before the name of a member, and between the two. https://www.rfc-editor.org/rfc/rfc8259#section-2
_BEFORE_NAME = re.compile(r'[ \t\n\r]*[{,][ \t\n\r]*"')
_BEFORE_VALUE = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_scan_value = json.JSONDecoder().raw_decode


class Body:
    """A JSON object, and the text that it was read from."""

    def __init__(self, text: str, values: dict[str, Any]) -> None:
        self.raw = text.encode()
        self.values = values
        self._text = text

    @classmethod
    def read(cls, raw: bytes) -> "Body":
        """:raises FieldError: if it is not a JSON object, or holds one name twice"""
        try:
            text = raw.decode()
            values = _decode(text)
        except (ValueError, RecursionError) as fault:
            raise FieldError(pointer="", reason="The body is not valid JSON.") from fault
        if not isinstance(values, dict):
            raise FieldError(pointer="", reason="The body is not a JSON object.")
        return cls(text, values)

    def with_values(self, **changed: Any) -> "Body":
        """Make a body in which these members have other values. A member that is not there is added at the end."""
        spans, end = self._find_members()
        pieces, at = [], 0
        for start, stop, name in sorted((*spans[name], name) for name in changed if name in spans):
            pieces += [self._text[at:start], json.dumps(changed[name])]
            at = stop
        pieces.append(self._text[at:end])
        separator = ", " if spans else ""
        for name in changed:
            if name not in spans:
                pieces.append(f"{separator}{json.dumps(name)}: {json.dumps(changed[name])}")
                separator = ", "
        pieces.append(self._text[end:])
        return Body("".join(pieces), {**self.values, **changed})

    def name_of(self, member: str) -> str:
        """
        Read a member that names something.

        :raises FieldError: if it is missing, or can be the name of nothing: half a character, or a page of text
        """
        value = self.values.get(member)
        if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARACTERS_MAX or not value.isprintable():
            raise FieldError(pointer=json_pointer(member), reason=f"`{member}` is required, and is a name.")
        return value

    def _find_members(self) -> tuple[dict[str, tuple[int, int]], int]:
        """Find where the value of each member begins and ends, and where the last one ends. The text is valid JSON."""
        text = self._text
        spans: dict[str, tuple[int, int]] = {}
        end, found = text.index("{") + 1, _BEFORE_NAME.match(text)
        while found:
            name, at = scanstring(text, found.end())
            between = _BEFORE_VALUE.match(text, at)
            assert between is not None
            _, end = _scan_value(text, between.end())
            spans[name] = (between.end(), end)
            found = _BEFORE_NAME.match(text, end)
        return spans, end


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers would each believe another one of two equal names: we, who judge, and the provider, who is paid."""
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FieldError(pointer=json_pointer(twice), reason=f"The name '{twice}' is given twice. Keep one.")
    return members


# Made once: `json.loads` makes one for each call that has a hook.
_decode = json.JSONDecoder(object_pairs_hook=_unique_names).decode
