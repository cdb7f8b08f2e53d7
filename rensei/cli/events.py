"""
Server-sent events, as far as the server's streams use them.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event: its number in the stream, its kind, and its data."""

    id: str
    kind: str
    data: Any


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """Assemble lines into events. A comment, which begins with a colon, only keeps the connection open."""
    fields: dict[str, str] = {}
    for line in lines:
        if line == "":
            if "data" in fields:
                yield Event(id=fields.get("id", ""), kind=fields.get("event", ""), data=json.loads(fields["data"]))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
