"""Reads JSON that strangers send, and refuses what only looks like data: it would fail later, as a fault of ours."""

import json
import sys
from typing import Any

from rensei.core.errors import FieldError, json_pointer

DEPTH_LIMIT = 64
NUMBER_LIMIT = {bool: 1, int: 2**63 - 1, float: sys.float_info.max}


def read_json(body: bytes) -> Any:
    """
    Parse a body strictly: UTF-8, one meaning for each name, numbers that a database can hold.

    :raises FieldError: if it is not JSON, or holds a value that cannot be stored
    """
    try:
        document = json.loads(body.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique_names)
    except (ValueError, RecursionError) as fault:
        raise FieldError(pointer="", reason="The body is not valid JSON.") from fault
    _check(document)
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # Two readers would each believe another one of the two.
        name = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise FieldError(pointer=json_pointer(name), reason=f"The name '{_printable(name)}' is given twice. Keep one.")
    return members


def _check(document: Any) -> None:
    """Walk the whole document, without recursion, because a hostile one is deep."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while waiting:
        path, value = waiting.pop()
        if len(path) > DEPTH_LIMIT:
            raise FieldError(pointer="", reason=f"The body is nested deeper than {DEPTH_LIMIT} levels.")
        if isinstance(value, dict):
            for name, inner in value.items():
                _check_text(name, path)
                waiting.append(((*path, name), inner))
        elif isinstance(value, list):
            waiting.extend(((*path, place), inner) for place, inner in enumerate(value))
        elif isinstance(value, str):
            _check_text(value, path)
        elif isinstance(value, int | float) and not abs(value) <= NUMBER_LIMIT[type(value)]:
            raise FieldError(pointer=json_pointer(*path), reason="The number is too large.")


def _check_text(text: str, path: tuple[str | int, ...]) -> None:
    if "\0" in text:
        # PostgreSQL cannot store it in a text.
        raise FieldError(pointer=json_pointer(*path), reason="A text may not hold the character U+0000.")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise FieldError(pointer=json_pointer(*path), reason="A text holds half of a surrogate pair.")


def _printable(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()
