"""
What a provider reports or a caller sends that is on none of our lists, counted by its kind and name.

Nothing unknown is free, dropped or allowed by accident: it is bounded before a call and charged or flagged after it.
This count lets operators see it. Names come from outside, so they are cut, and their number is bounded.
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
# Counted instead of a name that comes after `NAMES_MAX` others.
OTHERS = "(others)"

_lock = threading.Lock()
_counts: Counter[tuple[str, str]] = Counter()


def note_unknown(kind: str, name: str, *, count: int = 1) -> None:
    """
    Count one thing that is not known.

    :param kind: what it is, such as `usage_field`, `iteration_type`, `block_type`, `model` or `header`
    :param name: its name as it came; any text
    :param count: how many times it was met
    """
    key = (kind, "".join(character for character in name if character.isprintable())[:NAME_CHARACTERS_MAX])
    with _lock:
        if key not in _counts and len(_counts) >= NAMES_MAX:
            key = (kind, OTHERS)
        _counts[key] += count


def take_counts() -> dict[tuple[str, str], int]:
    """Return what this process has counted since the last call, by kind and name, and begin anew."""
    with _lock:
        counts = dict(_counts)
        _counts.clear()
    return counts
