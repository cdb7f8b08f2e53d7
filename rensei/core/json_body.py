"""
Reads the JSON that comes in at every border: REST, the gateway, workflow documents, and what providers answer.

Its cost is bounded before a value is built: time grows no faster than the bytes, and memory not beyond
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
# Of a name that is repeated to the caller.
NAME_CHARACTERS_MAX = 100
# Every value but the outermost stands behind one of these marks, and is no shorter than a byte.
_NO_MARKS = bytes(set(range(256)) - set(b"[{,"))
_BYTES_PER_VALUE_MIN = 2
# A smaller document holds too few values for the garbage collector to be felt.
_COLLECTED_BYTES = 8 * 1024
# Up to the next mark outside of texts, or to the end. It matches wherever it is tried, a text without an end included:
# where it failed, the search would begin anew at the next byte, and again look at all that follows.
_UP_TO_MARK = re.compile(rb'(?:[^"\[{,]++|"[^"\\]*+(?:\\.?[^"\\]*+)*+"?)*+(?:[\[{,]|\Z)', re.DOTALL)
# What follows the last mark matches, and the end once more.
_MATCHES_MAX = VALUES_MAX + 2
# Makes every digit a zero, so that a long number is found by a search for zeros.
_DIGITS_TO_ZERO = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))
# The shortest numbers that no database column holds, and that orjson makes inexact.
_NOT_STORABLE = (b"0" * 19,)
_INEXACT = (b"0" * 20, b"-" + b"0" * 19)
_SURROGATE = re.compile("[\ud800-\udfff]")
AnyDocument = TypeVar("AnyDocument", bytes, str)
# A value's place: that of what it is in, and its name or number there. None is the place of the document.
_Place = tuple["_Place", str | int] | None


class TooManyValues(ValueError):
    """A document holds more values than are built from one."""


def read_json(body: bytes) -> Any:
    """
    Parse a body strictly, and refuse what a database could not hold: it would fail later, as a fault of ours.

    :raises FieldError: if it is not JSON, is larger than the limits, or holds a value that cannot be stored
    """
    document, is_plain = _parse(body)
    if not is_plain or b"\\u0000" in body or _has_number(body, _NOT_STORABLE):
        _check_storable(document)
    return document


def parse_json(body: bytes) -> Any:
    """
    Parse a body: UTF-8, one meaning for each name, and no number beyond `INTEGER_MAX`.

    :raises FieldError: if it is not JSON, or larger than the limits
    """
    document, is_plain = _parse(body)
    if not is_plain:
        _check_numbers(document)
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
    # Those inside of texts are counted here too, which is quick, and enough for almost every document.
    if len(document.translate(None, _NO_MARKS)) <= VALUES_MAX:
        return
    if sum(1 for _ in islice(_UP_TO_MARK.finditer(document), _MATCHES_MAX + 1)) > _MATCHES_MAX:
        raise TooManyValues(f"The document holds more than {VALUES_MAX} values.")


def uncollected(build: Callable[[AnyDocument], Any], document: AnyDocument) -> Any:
    """
    Build the values of a document, and keep the garbage collector away meanwhile.

    It would look through all that was built so far, again and again, and stop every thread of the process meanwhile:
    100 ms for 284 kB of empty lists that are built in 8. There is nothing to find, as JSON holds no cycles.
    """
    if len(document) <= _COLLECTED_BYTES or not gc.isenabled():
        return build(document)
    # Of several threads, the one that found it at work sets it to work again.
    gc.disable()
    try:
        return build(document)
    finally:
        gc.enable()


def _parse(body: bytes) -> tuple[Any, bool]:
    """Parse a body, and tell whether orjson read it, which takes no NaN, no infinite number and no half character."""
    try:
        check_values(body)
    except TooManyValues:
        raise FieldError(pointer="", reason=f"The body holds more than {VALUES_MAX} values. Send less.") from None
    parsed: tuple[Any, bool] = uncollected(_build, body)
    return parsed


def _build(body: bytes) -> tuple[Any, bool]:
    try:
        document = orjson.loads(body)
        again = orjson.dumps(document)
    except (ValueError, TypeError):
        return _parse_exactly(body), False
    # orjson keeps the last of two members with one name, and makes a number beyond 64 bits an inexact one. A member
    # that was lost takes its colon with it, and no other colon comes or goes unless it was written as an escape.
    lost_nothing = again.count(b":") == body.count(b":") and not _has_escaped_colon(body)
    if lost_nothing and not _has_number(body, _INEXACT):
        return document, True
    del document, again
    return _parse_exactly(body), False


def _has_escaped_colon(body: bytes) -> bool:
    # The first search is for both, and enough for almost every body.
    return b"\\u003" in body and (b"\\u003a" in body or b"\\u003A" in body)


def _has_number(body: bytes, shapes: Iterable[bytes]) -> bool:
    """Tell whether a number of such a shape stands anywhere, perhaps in a text. In a shape, 0 is any digit."""
    zeros = body.translate(_DIGITS_TO_ZERO)
    return any(shape in zeros for shape in shapes)


def _parse_exactly(body: bytes) -> Any:
    """:raises FieldError: which names what is wrong"""
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
    """Two readers would each believe another one of two equal names: we, who judge, and the provider, who is paid."""
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


# Made once: `json.loads` makes one for each call that has a hook.
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
    """Walk the whole document, without recursion. Only what has values of its own is kept for later."""
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
    """Find the numbers that orjson does not take. As in `_check_storable`, only what has values is kept for later."""
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
