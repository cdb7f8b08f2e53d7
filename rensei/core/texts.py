"""Texts from outside, in a form that both databases and every reader of UTF-8 can store."""

import json
import math
import re
from typing import Any

from rensei.core.json_body import check_values, quickly, uncollected

# PostgreSQL stores no U+0000, and half of a surrogate pair is not a character. JSON can express both, escaped.
_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
# Far above what any reader takes as a number, and below what Python refuses to convert.
_DIGITS_MAX = 1000


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _DIGITS_MAX else _REPLACEMENT


# Made once: `json.loads` makes a decoder for each call that has a hook.
_decode = json.JSONDecoder(parse_int=_integer).decode


def read_storable(text: str | bytes) -> Any:
    """
    Read a document whose sender cannot be refused: what cannot be stored becomes U+FFFD.

    :raises ValueError: if it is not JSON, or holds more values than the limit
    :raises RecursionError: if it is nested too deeply
    """
    check_values(text)
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if b"\\u0000" not in raw and (found := uncollected(quickly, raw)) is not None:
        return found
    if not isinstance(text, str):
        text = text.decode(errors="replace")
    return _storable(uncollected(_decode, text))


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return _NOT_STORABLE.sub(_REPLACEMENT, value)
    if isinstance(value, float) and not math.isfinite(value):
        return _REPLACEMENT
    if isinstance(value, list):
        return [_storable(each) for each in value]
    if isinstance(value, dict):
        return {_storable(name): _storable(each) for name, each in value.items()}
    return value
