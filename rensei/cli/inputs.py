"""What people hand in: texts, files, secrets."""

import base64
import getpass
import sys
from pathlib import Path
from typing import Any

from rensei.cli.errors import Refused

IMAGE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif"}
IMAGE_TYPES[".webp"] = "image/webp"


def read_text(given: str) -> str:
    """Take a text as it is, or from standard input (`-`)."""
    return sys.stdin.read() if given == "-" else given


def read_document(place: str) -> str:
    """
    Read a file, or standard input (`-`).

    :raises Refused: if it cannot be read as text
    """
    if place == "-":
        return sys.stdin.read()
    try:
        return _read_file(Path(place)).decode()
    except UnicodeDecodeError as fault:
        raise Refused("FILE_UNREADABLE", f"{place} is not a text in UTF-8.") from fault


def read_secret(name: str) -> str:
    """
    Ask for a secret without showing it, or read it from standard input. It never stands on the command line.

    :raises Refused: if there is none
    """
    secret = getpass.getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not secret.strip():
        raise Refused(
            "SECRET_MISSING", f"{name} is empty.", fix="Type it where it is asked for, or send it to standard input."
        )
    return secret.strip()


def image_block(path: Path) -> dict[str, Any]:
    """
    Make an image a block of a message.

    :raises Refused: if it cannot be read, or has no ending of an image that models take
    """
    media_type = IMAGE_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise Refused("INVALID_IMAGE", f"{path} does not end like an image.", fix="PNG, JPEG, GIF and WebP are taken.")
    data = base64.b64encode(_read_file(path)).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise Refused("FILE_UNREADABLE", f"{path} cannot be read: {fault.strerror}.") from fault
