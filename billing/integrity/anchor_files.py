"""
The anchors in append-only files: one JSON object a line.

Rensei always writes one file. A second file on another volume, or a copy kept elsewhere, is equal evidence.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from billing.integrity.sealed_file import Anchor, NotAnExport
from billing.models import LedgerAnchor

# An upper bound of the length of a file's last line.
TAIL_BYTES = 4096


@dataclass(frozen=True)
class FileLine:
    """One line of a file of anchors. `anchor` is None if the line is not an anchor."""

    number: int
    anchor: LedgerAnchor | None


def size_of(path: Path) -> int:
    """Return the current length of a file. What is added later belongs to later anchors."""
    return path.stat().st_size if path.exists() else 0


def read(path: Path, size: int) -> Iterator[FileLine]:
    """Read the first `size` bytes of a file, line by line."""
    if not size:
        return
    with path.open("rb") as file:
        number = 0
        while file.tell() < size and (line := file.readline()):
            number += 1
            if line.strip():
                yield FileLine(number, parse(line))


def last_of(path: Path) -> LedgerAnchor | None:
    """Read the last anchor of a file."""
    return next((line.anchor for line in reversed(_tail(path).lines) if line.anchor is not None), None)


def add_new(path: Path) -> None:
    """
    Append the anchors that are newer than the file's last one.

    They are committed first, so after a crash in between the next run appends them. With several machines,
    each file also holds the anchors of the others.
    """
    tail = _tail(path)
    last = next((line.anchor.pk for line in reversed(tail.lines) if line.anchor is not None), 0)
    new = LedgerAnchor.objects.filter(pk__gt=last).order_by("pk")
    text = "".join(f"{json.dumps(content_of(each))}\n" for each in new.iterator(chunk_size=1000))
    if not text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w") as file:
        file.write(("" if tail.is_whole else "\n") + text)
        file.flush()
        os.fsync(file.fileno())


def content_of(anchor: LedgerAnchor) -> dict[str, Any]:
    """Return an anchor's content as it is written to files and sent to witnesses."""
    return {
        "anchor": anchor.pk,
        "counter": anchor.counter,
        "previous": anchor.previous,
        "org": anchor.org_id,
        "lines": anchor.seq,
        "digest": anchor.digest,
        "anchoredAt": text_of(anchor.anchored_at),
        **({"nextKey": anchor.next_key} if anchor.next_key else {}),
        **({"oldKeyKnown": True} if anchor.old_key_known else {}),
        "signature": anchor.signature,
    }


def parse(line: bytes) -> LedgerAnchor | None:
    """Parse a line. Return None if it is not an anchor."""
    try:
        content: dict[str, Any] = json.loads(line)
        told = Anchor.read(content)
        return LedgerAnchor(
            pk=int(content["anchor"]),
            counter=told.counter,
            previous=told.previous,
            org_id=told.org,
            seq=told.seq,
            digest=told.digest,
            anchored_at=datetime.fromisoformat(told.anchored_at),
            next_key=told.next_key,
            old_key_known=told.old_key_known,
            signature=told.signature,
        )
    except (NotAnExport, AttributeError, ValueError, TypeError, KeyError):
        return None


def named(anchor: LedgerAnchor) -> str:
    """Return the name of an anchor for use in a sentence."""
    return f"{anchor.counter or '-'} of {anchor.anchored_at:%Y-%m-%d %H:%M:%S} UTC"


def text_of(moment: datetime) -> str:
    """Format a time in the form that is signed."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class _Tail:
    lines: list[FileLine]
    is_whole: bool


def _tail(path: Path) -> _Tail:
    if not path.exists():
        return _Tail([], is_whole=True)
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        text = file.read()
    lines = [FileLine(0, parse(line)) for line in text.splitlines()]
    return _Tail(lines, is_whole=text.endswith(b"\n") or not text)
