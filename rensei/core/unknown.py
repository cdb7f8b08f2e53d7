"""
Unknown names that a provider reports or a caller sends, counted by kind and name.

Nothing unknown is free, dropped or allowed by accident: it is bounded before a call and charged or flagged after it.
The counts are shown to operators. Names come from outside, so their length and number are bounded.
"""

import threading
from collections import Counter

from rensei.core.limits import limit

NAME_CHARACTERS_MAX = 80
NAMES_MAX = limit(
    500,
    "names",
    what="Names that are not known, each process until they are stored",
    told="operators: the others of a kind as `(others)`",
)
# Counted in place of a name that comes after `NAMES_MAX` others.
OTHERS = "(others)"

_lock = threading.Lock()
_counts: Counter[tuple[str, str]] = Counter()


def note_unknown(kind: str, name: str, *, count: int = 1) -> None:
    """
    Count one unknown thing.

    :param kind: what it is, such as `usage_field`, `iteration_type`, `block_type`, `model` or `header`
    :param name: its name as received; any text
    :param count: the number of occurrences
    """
    key = (kind, "".join(character for character in name if character.isprintable())[:NAME_CHARACTERS_MAX])
    with _lock:
        if key not in _counts and len(_counts) >= NAMES_MAX:
            key = (kind, OTHERS)
        _counts[key] += count


def take_counts() -> dict[tuple[str, str], int]:
    """Return the counts of this process since the last call, by kind and name, and reset them."""
    with _lock:
        counts = dict(_counts)
        _counts.clear()
    return counts
