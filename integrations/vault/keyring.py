"""
The local keyring: a JSON file with the key-encryption keys, outside the database.

`{"current": "kek_…", "keys": {"kek_…": "<32 bytes in base64>"}}`; the current key wraps, every key unwraps.
"""

import base64
import binascii
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from django.conf import settings

from integrations.models import DataKey
from integrations.vault.errors import KekUnavailable
from rensei.core import private_files
from rensei.core.ids import new_id

KEY_BYTES = 32
ID_PREFIX = "kek_"


@dataclass(frozen=True)
class Keyring:
    """The keys of one file, by id. Its printed form omits them."""

    current: str
    keys: dict[str, bytes] = field(repr=False)


def ensure(path: Path) -> bool:
    """
    Create the keyring if there is none and nothing has been sealed yet.

    Once a data key exists, a missing keyring was lost or is not mounted. A new one could open nothing and would
    hide that. So no file is created, and the vault's health names the missing key.
    Returns whether a keyring was created.
    """
    if path.exists() or DataKey.objects.exists():
        return False
    try:
        create(path)
    except FileExistsError:
        return False  # Another process started at the same moment and created a keyring, which is used.
    return True


def create(path: Path) -> None:
    """
    Write a new keyring with one random key, readable only by its owner.

    The file is written atomically and never replaces an existing one.

    :raises FileExistsError: if the file already exists
    """
    kek_id = new_id("kek")
    private_files.create(path, _written({kek_id: secrets.token_bytes(KEY_BYTES)}, current=kek_id))


def add_key(path: Path, *, current: bool) -> str:
    """
    Add a new random key to a keyring, and return its id. If it is not made current, it only unwraps for now.

    :raises KekUnavailable: if the keyring cannot be read
    """
    kek_id = new_id("kek")
    with _changed(path) as ring:
        keys = {**ring.keys, kek_id: secrets.token_bytes(KEY_BYTES)}
        private_files.replace(path, _written(keys, current=kek_id if current else ring.current))
    return kek_id


def make_current(path: Path, kek_id: str) -> None:
    """
    Make a key of a keyring the one that wraps.

    :raises KekUnavailable: if the keyring cannot be read, or does not hold the key
    """
    with _changed(path) as ring:
        if kek_id not in ring.keys:
            raise KekUnavailable(f"the key {kek_id} is not in the keyring")
        private_files.replace(path, _written(ring.keys, current=kek_id))


def remove_key(path: Path, kek_id: str) -> None:
    """
    Remove a key from a keyring, for good. The current one stays.

    :raises KekUnavailable: if the keyring cannot be read, or the key is the current one
    """
    with _changed(path) as ring:
        if kek_id == ring.current:
            raise KekUnavailable(f"the key {kek_id} is the current one")
        keys = {other: key for other, key in ring.keys.items() if other != kek_id}
        private_files.replace(path, _written(keys, current=ring.current))


def load(path: Path) -> Keyring:
    """
    Read a keyring. Errors do not contain the path of the file, because members read them too.

    :raises KekUnavailable: if it is missing, readable by others, owned by another user, damaged, or holds a weak key
    """
    try:
        with path.open("rb") as file:
            refuse_open_file(os.fstat(file.fileno()))
            content = file.read()
    except OSError as fault:
        raise KekUnavailable(f"the keyring cannot be read ({fault.strerror})") from None
    return _parse(content)


@contextmanager
def _changed(path: Path) -> Iterator[Keyring]:
    """Read a keyring that no other command changes meanwhile: a key that one of them added would be lost."""
    try:
        with private_files.locked(path):
            yield load(path)
    except OSError as fault:
        raise KekUnavailable(f"the keyring cannot be changed ({fault.strerror})") from None


def _written(keys: dict[str, bytes], *, current: str) -> str:
    encoded = {kek_id: base64.b64encode(key).decode() for kek_id, key in keys.items()}
    return json.dumps({"current": current, "keys": encoded}, indent=2) + "\n"


def refuse_open_file(status: os.stat_result, *, what: str = "the keyring") -> None:
    """:raises KekUnavailable: if a file belongs to another user, or can be read by one"""
    if status.st_uid != os.geteuid():
        raise KekUnavailable(f"{what} belongs to another user of the machine")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise KekUnavailable(f"{what} is open to other users of the machine: run `chmod 600` on it")


def _parse(content: bytes) -> Keyring:
    damaged = KekUnavailable("the keyring is damaged: it is not the JSON that Rensei wrote")
    try:
        document = json.loads(content)
        current, encoded = document["current"], document["keys"]
        keys = {kek_id: base64.b64decode(text, validate=True) for kek_id, text in encoded.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error):
        # The cause would contain the text of the file, so it is dropped.
        raise damaged from None
    if not isinstance(current, str) or current not in keys:
        raise KekUnavailable("the keyring names a current key that it does not hold")
    for kek_id, key in keys.items():
        if reason := _weakness(key):
            raise KekUnavailable(f"the key {kek_id} in the keyring is refused: {reason}")
    return Keyring(current, keys)


def _weakness(key: bytes) -> str:
    if len(key) != KEY_BYTES:
        return f"it has {len(key)} bytes and not {KEY_BYTES}"
    if len(set(key)) == 1:
        return "all its bytes are equal"
    if key in _derived_from_secret_key():
        return "it is made from SECRET_KEY, so one that is learnt gives the other"
    return ""


def _derived_from_secret_key() -> set[bytes]:
    """List the keys that people commonly derive from one secret instead of creating a second one."""
    known = [key.encode() for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)]
    digests = (hashlib.sha256, hashlib.sha512, hashlib.sha3_256, hashlib.blake2b, hashlib.blake2s)
    digested = {digest(secret).digest()[:KEY_BYTES] for digest in digests for secret in known}
    return digested | {secret[:KEY_BYTES].ljust(KEY_BYTES, b"\0") for secret in known}
