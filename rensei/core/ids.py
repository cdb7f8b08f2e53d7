"""Public ids: a prefix for the kind of object, and a ULID, which sorts by time."""

import os
import threading
import time
from datetime import datetime
from functools import partial
from typing import Any

from django.db import models

# Names the run of a gateway call in its response. Without it, a response is of no call.
RUN_ID_HEADER = "x-rensei-run-id"

# https://github.com/ulid/spec: 48 bits of time in milliseconds and 80 random ones, in 26 characters of 5 bits each,
# which are written two at a time.
_RANDOM_BITS = 80
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS = range(120, -1, -10)


class _Ulids:
    """Makes ULIDs. Within one millisecond, each is the previous one plus one, so they sort in order of creation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0
        # All characters but the last two of the latest one, which most of the others of its millisecond share.
        self._head = (0, "")

    def make(self) -> str:
        made = self._following()
        while made is None:
            # Drawn without the lock: the system call releases the interpreter, and the event loop would wait for both.
            made = self._following(drawn=int.from_bytes(os.urandom(_RANDOM_BITS // 8)))
        number, head = self._head
        if number != made >> 10:
            head = _written(made)[:-2]
            self._head = (made >> 10, head)
        return head + _PAIRS[made & 1023]

    def _following(self, *, drawn: int | None = None) -> int | None:
        """Return the next one. None for the first of a millisecond, if no random bits were drawn for it."""
        with self._lock:
            milliseconds = time.time_ns() // 1_000_000
            if self._last >> _RANDOM_BITS == milliseconds:
                self._last += 1
            elif drawn is None:
                return None
            else:
                self._last = milliseconds << _RANDOM_BITS | drawn
            return self._last


_ulids = _Ulids()


def new_id(prefix: str) -> str:
    """Make an id such as `run_01kaf3…`. It is never a secret."""
    return f"{prefix}_{_ulids.make()}"


def first_id_of(prefix: str, moment: datetime) -> str:
    """Return the lowest id that an object created at a moment may have; before 1970, the lowest of all."""
    return f"{prefix}_{_written(max(0, int(moment.timestamp() * 1000)) << _RANDOM_BITS)}"


def _written(ulid: int) -> str:
    return "".join([_PAIRS[ulid >> shift & 1023] for shift in _SHIFTS])


class PublicIdField(models.CharField):  # type: ignore[type-arg]
    """A primary key that is also the id on the wire, such as `run_01kaf3…`."""

    def __init__(self, *, prefix: str, **options: Any) -> None:
        self.prefix = prefix
        options.setdefault("max_length", 40)
        options.setdefault("primary_key", True)
        options.setdefault("editable", False)
        options["default"] = partial(new_id, prefix)
        super().__init__(**options)

    def deconstruct(self) -> Any:
        name, path, args, options = super().deconstruct()
        del options["default"]
        return name, path, args, {**options, "prefix": self.prefix}
