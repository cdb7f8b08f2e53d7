"""
Reads the JSON of every interface: REST, the gateway, workflow documents, and providers' answers.

The cost is bounded before a value is built: time is linear in the bytes, and memory at most
`MEMORY_PER_BYTE` and `MEMORY_BYTES`.
"""

import gc
import json
import re
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, TypeVar

import orjson

from rensei.core.errors import FieldError, json_pointer
from rensei.core.limits import limit

DEPTH_LIMIT = limit(254, "levels", what="JSON body: nesting", told="the caller: 400 `VALIDATION_FAILED`")
VALUES_MAX = limit(
    250_000,
    "values",
    what="JSON body: values, where an object or a list counts as two",
    told="the caller: 400 `VALIDATION_FAILED`",
)
MEMORY_BYTES = 64 * 1024 * 1024
MEMORY_PER_BYTE = limit(
    10,
    "times its bytes, and 64 MiB",
    what="JSON body: memory while it is read, itself included",
    told="the caller: 400 `VALIDATION_FAILED` for what would take more",
)
INTEGER_MAX = 2**64 - 1
NUMBER_LIMIT = {bool: 1, int: 2**63 - 1, float: sys.float_info.max}
_LIMIT_OF_EVERY_BODY = {**NUMBER_LIMIT, int: INTEGER_MAX}
# The part of a name that an error message repeats.
NAME_CHARACTERS_MAX = 100
# Work of this size takes a few milliseconds. A value or a line costs as much as this many bytes of text: a body of
# 64 KiB may hold 20,000 empty objects, each of which is checked, counted and priced.
LARGE_WORK = 64 * 1024
BYTES_PER_MARK = 64
# Every value but the outermost comes after one of these marks, and takes at least a byte.
_NO_MARKS = bytes(set(range(256)) - set(b"[{,"))
_NO_MARKS_NOR_LINES = bytes(set(range(256)) - set(b"[{,\n\r"))
_BYTES_PER_VALUE_MIN = 2
# A smaller document holds too few values for the garbage collector to matter.
_COLLECTED_BYTES = 8 * 1024
# Up to the next mark outside of texts, or to the end. It matches at every position, even in an unterminated text:
# on a failed match, the search would start again at the next byte and scan all that follows once more.
_UP_TO_MARK = re.compile(rb'(?:[^"\[{,]++|"[^"\\]*+(?:\\.?[^"\\]*+)*+"?)*+(?:[\[{,]|\Z)', re.DOTALL)
# What follows the last mark is a match, and the end is another.
_MATCHES_MAX = VALUES_MAX + 2
# Maps every digit to zero, so that a long number is found by a search for zeros.
_DIGITS_TO_ZERO = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))
# The shortest numbers that no database column can store, and that orjson makes inexact.
_NOT_STORABLE = (b"0" * 19,)
_INEXACT = (b"0" * 20, b"-" + b"0" * 19)
_SURROGATE = re.compile("[\ud800-\udfff]")
AnyDocument = TypeVar("AnyDocument", bytes, str)
# A value's place: that of its container, and its name or index there. None is the place of the document.
_Place = tuple["_Place", str | int] | None


class TooManyValues(ValueError):
    """A document holds more values than the limit."""


def read_json(body: bytes) -> Any:
    """
    Parse a body strictly, and reject what the database cannot store, which would fail later as a server error.

    :raises FieldError: if it is not JSON, is larger than the limits, or holds a value that cannot be stored
    """
    document, is_plain = _parse(body)
    if not is_plain or b"\\u0000" in body or _has_number(body, _NOT_STORABLE):
        _check_storable(document)
    return document


def parse_json(body: bytes) -> Any:
    """
    Parse a body: UTF-8, unique names in each object, and no number beyond `INTEGER_MAX`.

    :raises FieldError: if it is not JSON, or larger than the limits
    """
    document, is_plain = _parse(body)
    if not is_plain:
        _check_numbers(document)
    return document


def read_object(body: bytes) -> dict[str, Any]:
    """:raises FieldError: as `read_json`, and if it is not an object"""
    return _object(read_json(body))


def parse_object(body: bytes) -> dict[str, Any]:
    """:raises FieldError: as `parse_json`, and if it is not an object"""
    return _object(parse_json(body))


def _object(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise FieldError(pointer="", reason="The body is not a JSON object.")
    return document


def check_values(document: bytes | str) -> None:
    """
    Count the values of a document without building any.

    :raises TooManyValues: if there are more than `VALUES_MAX`
    """
    if len(document) <= _BYTES_PER_VALUE_MIN * VALUES_MAX:
        return
    if isinstance(document, str):
        document = document.encode(errors="surrogatepass")
    # Marks inside of texts are counted here too, which is quick, and sufficient for almost every document.
    if len(document.translate(None, _NO_MARKS)) <= VALUES_MAX:
        return
    if sum(1 for _ in islice(_UP_TO_MARK.finditer(document), _MATCHES_MAX + 1)) > _MATCHES_MAX:
        raise TooManyValues(f"The document holds more than {VALUES_MAX} values.")


def marks_in(text: bytes) -> int:
    """Count at most as many values and lines as JSON or an event stream holds, by the bytes before or after each."""
    return len(text.translate(None, _NO_MARKS_NOR_LINES))


def work_of(text: bytes) -> int:
    """Estimate the work that reading a text takes, in bytes of plain text."""
    return max(len(text), BYTES_PER_MARK * marks_in(text))


def uncollected(build: Callable[[AnyDocument], Any], document: AnyDocument) -> Any:
    """
    Build the values of a document with the garbage collector disabled.

    It would scan all values built so far, again and again, and stop every thread of the process meanwhile:
    100 ms for 284 kB of empty lists that are built in 8 ms. It would find nothing, as JSON holds no cycles.
    """
    if len(document) <= _COLLECTED_BYTES or not gc.isenabled():
        return build(document)
    # Of several threads, the one that found it enabled enables it again.
    gc.disable()
    try:
        return build(document)
    finally:
        gc.enable()


def _parse(body: bytes) -> tuple[Any, bool]:
    """Parse a body, and return whether orjson read it, which rejects NaN, infinite numbers and lone surrogates."""
    try:
        check_values(body)
    except TooManyValues:
        raise FieldError(pointer="", reason=f"The body holds more than {VALUES_MAX} values. Send less.") from None
    parsed: tuple[Any, bool] = uncollected(_build, body)
    return parsed


def quickly(document: bytes) -> Any:
    """
    Build what orjson reads exactly, of which everything can be stored but U+0000. Of a repeated name, the last counts.

    Returns None for null and for everything else: what is not JSON, lone surrogates, large numbers, NaN.
    """
    if _has_number(document, _INEXACT):
        return None
    try:
        return orjson.loads(document)
    except ValueError:
        return None


def _build(body: bytes) -> tuple[Any, bool]:
    try:
        document = orjson.loads(body)
        again = orjson.dumps(document)
    except (ValueError, TypeError):
        return _parse_exactly(body), False
    # orjson drops the first of two members with one name, and makes a number beyond 64 bits inexact. A dropped
    # member changes the number of colons, and only colons that were written as escapes change it otherwise.
    lost_nothing = again.count(b":") == body.count(b":") and not _has_escaped_colon(body)
    if lost_nothing and not _has_number(body, _INEXACT):
        return document, True
    del document, again
    return _parse_exactly(body), False


def _has_escaped_colon(body: bytes) -> bool:
    # The first search is a quick test that suffices for almost every body.
    return b"\\" in body and b"\\u003" in body and (b"\\u003a" in body or b"\\u003A" in body)


def _has_number(body: bytes, shapes: Iterable[bytes]) -> bool:
    """Check whether a number of such a shape occurs, possibly in a text. In a shape, 0 is any digit."""
    zeros = body.translate(_DIGITS_TO_ZERO)
    for shape in shapes:  # noqa: SIM110 - half the time of `any`, for every body
        if shape in zeros:
            return True
    return False


def _parse_exactly(body: bytes) -> Any:
    """:raises FieldError: with the cause"""
    try:
        document = _decode(body.decode())
    except (ValueError, RecursionError) as fault:
        reason = f"The body is not valid JSON, or is nested deeper than {DEPTH_LIMIT} levels."
        raise FieldError(pointer="", reason=reason) from fault
    _check_depth(document)
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Reject duplicate names: Rensei's checks and the provider might each use a different one of the values."""
    members = dict(pairs)
    if len(members) != len(pairs):
        name = _printable(_first_repeated(pairs)[:NAME_CHARACTERS_MAX])
        raise FieldError(pointer=json_pointer(name), reason=f"The name '{name}' is given twice. Keep one.")
    return members


def _first_repeated(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    raise AssertionError("No name is repeated.")


# Made once: `json.loads` makes a decoder for each call that has a hook.
_decode = json.JSONDecoder(object_pairs_hook=_unique_names, parse_constant=_refuse_constant).decode


def _check_depth(document: Any) -> None:
    """:raises FieldError: if it is nested too deeply"""
    level, depth = [document], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > DEPTH_LIMIT:
            raise FieldError(pointer="", reason=f"The body is nested deeper than {DEPTH_LIMIT} levels.")
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]


def _check_storable(document: Any) -> None:
    """Walk the whole document, without recursion. Only containers are pushed on the stack."""
    waiting: list[tuple[_Place, Any]] = [(None, document)]
    while waiting:
        place, found = waiting.pop()
        if isinstance(found, dict):
            for name in found:
                _check_text(name, place)
        elif not isinstance(found, list):
            _check_value(found, place)
            continue
        for step, value in found.items() if isinstance(found, dict) else enumerate(found):
            if isinstance(value, dict | list):
                waiting.append(((place, step), value))
            else:
                _check_value(value, (place, step))


def _check_numbers(document: Any) -> None:
    """Find the numbers that orjson does not accept. As in `_check_storable`, only containers are pushed."""
    waiting: list[tuple[_Place, Any]] = [(None, document)] if isinstance(document, dict | list) else []
    while waiting:
        place, found = waiting.pop()
        for step, value in found.items() if isinstance(found, dict) else enumerate(found):
            if isinstance(value, dict | list):
                waiting.append(((place, step), value))
            elif isinstance(value, int | float) and not abs(value) <= _LIMIT_OF_EVERY_BODY[type(value)]:
                raise FieldError(pointer=_pointer((place, step)), reason="The number is too large.")


def _check_value(value: Any, place: "_Place") -> None:
    if isinstance(value, str):
        _check_text(value, place)
    elif isinstance(value, int | float) and not abs(value) <= NUMBER_LIMIT[type(value)]:
        raise FieldError(pointer=_pointer(place), reason="The number is too large.")


def _check_text(text: str, place: "_Place") -> None:
    if "\0" in text:
        # PostgreSQL cannot store it in a text.
        raise FieldError(pointer=_pointer(place), reason="A text may not hold the character U+0000.")
    if not text.isascii() and _SURROGATE.search(text):
        raise FieldError(pointer=_pointer(place), reason="A text holds half of a surrogate pair.")


def _pointer(place: "_Place") -> str:
    steps: list[str | int] = []
    while place is not None:
        place, step = place
        steps.append(step if isinstance(step, int) else _printable(step[:NAME_CHARACTERS_MAX]))
    return json_pointer(*reversed(steps))


def _printable(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()
