"""
The keys of the anchors: a file with one key a line, in hexadecimal digits, and which of them signs.

The first line signs until it has signed the id of the next one, in an anchor. Replaced keys stay in the file, because
older anchors and receipts are verified with them. A hand-over may say that others know the old key: it still verifies
anchors, which the chain protects, but no receipt. Each machine then notes the word `known` before that key in its file,
so that a database from before the hand-over does not have it sign again.
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from django.conf import settings

from billing.integrity import digests
from billing.integrity.anchor_files import text_of
from billing.models import LedgerAnchor
from rensei.core import private_files

KEY_BYTES = 32
ID_BYTES = 16
KNOWN = "known"


class AnchorKeyUnavailable(Exception):
    """The key file is missing although anchors exist, its content is not in Rensei's format, or it lacks a key."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """
    The keys of the file by id, in its order, and the anchors that handed over to another key, by number.

    `known` are the ids of keys that others know, by a hand-over or by the file, and `noted` those that the file names.
    """

    by_id: Mapping[str, bytes] = field(repr=False)
    noted: frozenset[str]
    known: frozenset[str]
    handovers: Sequence[tuple[int, str]] = ()

    @property
    def first_id(self) -> str:
        return next(iter(self.by_id))

    @property
    def active_id(self) -> str:
        return self.handovers[-1][1] if self.handovers else self.first_id

    @property
    def active(self) -> bytes:
        """:raises AnchorKeyUnavailable: if the file lacks the key that signs now, or others know it"""
        self.require_all()
        return self.by_id[self.active_id]

    @property
    def staged(self) -> list[str]:
        """The ids of the keys in the file that are to sign later."""
        ids = list(self.by_id)
        return ids[ids.index(self.active_id) + 1 :] if self.active_id in ids else []

    @property
    def replaced(self) -> dict[str, bytes]:
        """The keys that signed before, without those that others know."""
        signed = {self.first_id, *(name for _, name in self.handovers)} - {self.active_id} - self.known
        return {name: key for name, key in self.by_id.items() if name in signed}

    def require_all(self) -> None:
        """:raises AnchorKeyUnavailable: if the file lacks a key that has signed, or others know the one that signs"""
        for _, name in self.handovers:
            if name not in self.by_id:
                raise AnchorKeyUnavailable(
                    f"it lacks the key {name}, which the anchors were handed over to: copy the file to every machine"
                )
        if self.active_id in self.known:
            raise AnchorKeyUnavailable(
                f"it says that others know the key {self.active_id}, and the database has no hand-over to another one: "
                "the database is older than the file, or its newest anchors were removed. Run verify_ledger"
            )

    def of(self, counter: int | None) -> Iterable[bytes]:
        """Return the keys that may have signed an anchor: before the first hand-over any that none of them names."""
        place = bisect_left(self.handovers, (counter or 0, ""))
        if place:
            return filter(None, [self.by_id.get(self.handovers[place - 1][1])])
        named = {name for _, name in self.handovers}
        return [key for name, key in self.by_id.items() if name not in named]


def load() -> Keys:
    """
    Read the keys, and from the anchors which of them signs. A hand-over that is not signed counts for nothing.

    :raises AnchorKeyUnavailable: if the file is missing, readable by others, or damaged
    """
    keys = _read(settings.RENSEI_LEDGER_ANCHOR_KEY)
    for anchor in LedgerAnchor.objects.filter(next_key__gt="").exclude(counter=None).order_by("counter"):
        if is_signed(anchor, keys):
            assert anchor.counter is not None
            known = {keys.active_id} if anchor.old_key_known else set()
            handovers = [*keys.handovers, (anchor.counter, anchor.next_key)]
            keys = replace(keys, known=keys.known | known, handovers=handovers)
    return keys


def active() -> bytes:
    """
    Read the key that signs now.

    :raises AnchorKeyUnavailable: if it is missing, readable by others, or damaged
    """
    return load().active


def sign(anchor: LedgerAnchor, key: bytes) -> str:
    """Sign the content of an anchor."""
    return hmac.new(key, json.dumps(content_of(anchor)).encode(), hashlib.sha256).hexdigest()


def is_signed(anchor: LedgerAnchor, keys: Keys) -> bool:
    """Return whether an anchor was signed with the key whose turn it was."""
    signature = anchor.signature.encode()
    return any(hmac.compare_digest(sign(anchor, key).encode(), signature) for key in keys.of(anchor.counter))


def content_of(anchor: LedgerAnchor) -> Sequence[object]:
    """List what the signature of an anchor covers."""
    return digests.said_by_anchor(
        counter=anchor.counter,
        previous=anchor.previous,
        org=anchor.org_id,
        seq=anchor.seq,
        digest=anchor.digest,
        anchored_at=text_of(anchor.anchored_at),
        next_key=anchor.next_key,
        old_key_known=anchor.old_key_known,
    )


def id_of(key: bytes) -> str:
    """Return the id of a key, which reveals nothing about it."""
    return hmac.new(key, b"rensei anchor key id", hashlib.sha256).hexdigest()[: 2 * ID_BYTES]


def create(path: Path) -> None:
    """Write a file with a random key. It is written atomically and never replaces an existing one."""
    private_files.create(path, secrets.token_hex(KEY_BYTES) + "\n")


def add(path: Path) -> str:
    """
    Add a random key to the file, and return its id. It signs nothing before the hand-over.

    :raises AnchorKeyUnavailable: if the file cannot be read or written
    """
    key = secrets.token_bytes(KEY_BYTES)
    _change(path, lambda lines: [*lines, key.hex()])
    return id_of(key)


def note_known(keys: Keys) -> None:
    """Note in the file which keys others know, by the hand-overs. A file that cannot be changed stays as it is."""

    def change(lines: list[str]) -> list[str]:
        return [f"{KNOWN} {line}" if line in known else line for line in lines]

    known = {keys.by_id[name].hex() for name in keys.known - keys.noted if name in keys.by_id}
    if known:
        with suppress(AnchorKeyUnavailable):
            _change(settings.RENSEI_LEDGER_ANCHOR_KEY, change)


def _change(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    """:raises AnchorKeyUnavailable: if the file cannot be read or written"""
    try:
        with private_files.locked(path):
            _read(path)
            lines = change(path.read_text().splitlines())
            private_files.replace(path, "".join(f"{line}\n" for line in lines))
    except OSError as fault:
        raise AnchorKeyUnavailable(
            f"it cannot be changed ({fault.strerror}): change a copy of it, and put that in its place"
        ) from None


def _read(path: Path) -> Keys:
    try:
        with path.open() as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read().split("\n")
    except OSError as fault:
        raise AnchorKeyUnavailable(f"it cannot be read ({fault.strerror})") from None
    except ValueError:
        raise AnchorKeyUnavailable("it is damaged") from None
    if stat.S_IMODE(mode) & 0o077:
        raise AnchorKeyUnavailable("it is open to other users of the machine: run `chmod 600` on it")
    by_id: dict[str, bytes] = {}
    known = set()
    for line in filter(None, map(str.strip, lines)):
        try:
            key = bytes.fromhex(line.removeprefix(f"{KNOWN} "))
        except ValueError:
            # The cause would contain the text of the file, so it is dropped.
            raise AnchorKeyUnavailable("it is damaged") from None
        if len(key) != KEY_BYTES:
            raise AnchorKeyUnavailable("it is damaged")
        by_id[id_of(key)] = key
        if line.startswith(KNOWN):
            known.add(id_of(key))
    if not by_id:
        raise AnchorKeyUnavailable("it is damaged")
    return Keys(by_id=by_id, noted=frozenset(known), known=frozenset(known))
