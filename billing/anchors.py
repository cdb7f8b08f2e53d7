"""
Anchors sign how far each chain has come, with a key that is not in the database.

Whoever rewrites the ledger can compute every digest anew, but not the signatures. Anchors are kept in the database
and copied to a file, one JSON object a line: to hide anything, both would have to be forged.
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import F, OuterRef, Subquery
from django.db.models.functions import Coalesce

from billing.models import LedgerAnchor, LedgerSeal
from rensei.core.clock import database_now
from rensei.core.transactions import durable
from rensei.orgs.models import Org

KEY_BYTES = 32
# Longer than the last line of the file can be.
TAIL_BYTES = 4096


class AnchorKeyUnavailable(Exception):
    """The key file is missing although anchors exist, or it is not what Rensei wrote."""


@dataclass(frozen=True)
class FileLine:
    """One line of the anchors' file. `anchor` is None where it is not an anchor at all."""

    number: int
    anchor: LedgerAnchor | None


def anchor() -> None:
    """Sign the end of every chain that has grown, and bring the file up to date."""
    heads = _grown_chains()
    if heads:
        key = _ensure_key()
        with durable():
            now = database_now()
            new = [
                LedgerAnchor(org_id=org_id, seq=seq, digest=digest, anchored_at=now) for org_id, seq, digest in heads
            ]
            for each in new:
                each.signature = sign(each, key)
            LedgerAnchor.objects.bulk_create(new)
    _copy_to_file(settings.RENSEI_LEDGER_ANCHORS)


def sign(anchor: LedgerAnchor, key: bytes) -> str:
    """Sign what an anchor says."""
    text = json.dumps([anchor.org_id, anchor.seq, anchor.digest, _text(anchor.anchored_at)])
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def is_signed(anchor: LedgerAnchor, key: bytes) -> bool:
    """Tell whether an anchor is ours."""
    return hmac.compare_digest(sign(anchor, key).encode(), anchor.signature.encode())


def load_key() -> bytes:
    """
    Read the key that signs.

    :raises AnchorKeyUnavailable: if it is missing, open to others, or damaged
    """
    path: Path = settings.RENSEI_LEDGER_ANCHOR_KEY
    try:
        with path.open() as file:
            mode = os.fstat(file.fileno()).st_mode
            key = bytes.fromhex(file.read().strip())
    except OSError as fault:
        raise AnchorKeyUnavailable(f"it cannot be read ({fault.strerror})") from None
    except ValueError:
        # The cause would show the text of the file, so it is dropped.
        raise AnchorKeyUnavailable("it is damaged") from None
    if stat.S_IMODE(mode) & 0o077:
        raise AnchorKeyUnavailable("it is open to other users of the machine: run `chmod 600` on it")
    if len(key) != KEY_BYTES:
        raise AnchorKeyUnavailable("it is damaged")
    return key


def file_size() -> int:
    """Tell how long the file is now. What is added later belongs to later anchors."""
    path: Path = settings.RENSEI_LEDGER_ANCHORS
    return path.stat().st_size if path.exists() else 0


def read_file(size: int) -> Iterator[FileLine]:
    """Read the first `size` bytes of the file, line by line."""
    if not size:
        return
    with settings.RENSEI_LEDGER_ANCHORS.open("rb") as file:
        number = 0
        while file.tell() < size and (line := file.readline()):
            number += 1
            if line.strip():
                yield FileLine(number, _parse(line))


def _grown_chains() -> list[tuple[str, int, str]]:
    """The organizations whose newest seal has no anchor, with its place and digest: two index reads for each."""
    head = LedgerSeal.objects.filter(org=OuterRef("pk")).order_by("-seq")
    anchored = LedgerAnchor.objects.filter(org=OuterRef("pk")).order_by("-seq")
    orgs = Org.objects.annotate(
        head_seq=Subquery(head.values("seq")[:1]),
        head_digest=Subquery(head.values("digest")[:1]),
        anchored_seq=Coalesce(Subquery(anchored.values("seq")[:1]), 0),
    )
    grown = orgs.filter(head_seq__gt=F("anchored_seq")).order_by("pk")
    return list(grown.values_list("pk", "head_seq", "head_digest"))


def _ensure_key() -> bytes:
    """Read the key, or make it where nothing has been signed yet: a new one would not fit older anchors."""
    path: Path = settings.RENSEI_LEDGER_ANCHOR_KEY
    if not path.exists() and not LedgerAnchor.objects.exists() and not file_size():
        _create_key(path)
    return load_key()


def _create_key(path: Path) -> None:
    """Write a random key. The file appears whole or not at all, and never replaces another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, fails if the name is taken.
        os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _copy_to_file(path: Path) -> None:
    """
    Add the anchors to the file that are newer than its last one.

    They are committed before, so a crash in between leaves them to the next turn, and on several machines
    each file has those of the others.
    """
    tail = _tail(path)
    last = next((line.anchor.pk for line in reversed(tail.lines) if line.anchor is not None), 0)
    new = LedgerAnchor.objects.filter(pk__gt=last).order_by("pk")
    text = "".join(_line(each) for each in new.iterator(chunk_size=1000))
    if not text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w") as file:
        file.write(("" if tail.is_whole else "\n") + text)
        file.flush()
        os.fsync(file.fileno())


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
    lines = [FileLine(0, _parse(line)) for line in text.splitlines()]
    return _Tail(lines, is_whole=text.endswith(b"\n") or not text)


def _line(anchor: LedgerAnchor) -> str:
    content = {
        "anchor": anchor.pk,
        "org": anchor.org_id,
        "lines": anchor.seq,
        "digest": anchor.digest,
        "anchoredAt": _text(anchor.anchored_at),
        "signature": anchor.signature,
    }
    return json.dumps(content) + "\n"


def _parse(line: bytes) -> LedgerAnchor | None:
    try:
        content: dict[str, Any] = json.loads(line)
        return LedgerAnchor(
            pk=int(content["anchor"]),
            org_id=str(content["org"]),
            seq=int(content["lines"]),
            digest=str(content["digest"]),
            anchored_at=datetime.fromisoformat(content["anchoredAt"]),
            signature=str(content["signature"]),
        )
    except (ValueError, TypeError, KeyError):
        return None


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
