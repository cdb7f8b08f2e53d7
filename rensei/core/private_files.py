"""Files that only their owner can read, complete from their first moment."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def create(path: Path, text: str) -> None:
    """
    Write a file that must not exist.

    :raises FileExistsError: if it does
    """
    with _draft(path, text) as draft:
        # Unlike a rename, a link fails if the name is in use.
        os.link(draft, path)


def replace(path: Path, text: str) -> None:
    """Write a file in place of the one that may be there."""
    with _draft(path, text) as draft:
        draft.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process or thread changes the file. The lock is a file beside it, which stays."""
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def _draft(path: Path, text: str) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
