"""Input from people: texts, files, secrets."""

import base64
import getpass
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from rensei.cli.errors import Refused

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask again")]

IMAGE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif"}
IMAGE_TYPES[".webp"] = "image/webp"


def read_text(given: str) -> str:
    """Return a text unchanged, or read it from standard input (`-`)."""
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
    Prompt for a secret without showing it, or read it from standard input. It is never on the command line.

    :raises Refused: if there is none
    """
    secret = getpass.getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not secret.strip():
        raise Refused(
            "SECRET_MISSING", f"{name} is empty.", fix="Type it where it is asked for, or send it to standard input."
        )
    return secret.strip()


_AGO = re.compile(r"(\d{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(given: str, *, flag: str, end_of_day: bool = False) -> str:
    """
    Read a day, a moment, or how long ago (`2h`), as a moment in ISO 8601. Without a zone it is UTC.

    :raises BadParameter: if it is none of these
    """
    try:
        if _AGO.fullmatch(given):
            read = datetime.now(UTC) - duration(given)
        else:
            read = datetime.fromisoformat(given)
            if end_of_day and len(given) == len("2026-11-01"):
                read += timedelta(days=1)
    except (ValueError, OverflowError) as fault:
        raise typer.BadParameter(
            "give a day such as 2026-11-01, a moment such as 2026-11-01T08:00:00Z, or how long ago, such as 2h.",
            param_hint=flag,
        ) from fault
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).isoformat()


def duration(given: str) -> timedelta:
    """:raises ValueError: if it is not a duration such as 30m, 2h, 7d or 1w"""
    found = _AGO.fullmatch(given)
    if found is None:
        raise ValueError(given)
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def confirm(question: str, *, yes: bool, otherwise: str) -> None:
    """
    Require a confirmation of a step that cannot be undone, unless `--yes` was given.

    :raises Refused: if there is no terminal
    :raises Abort: if the answer is no
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused("CONFIRMATION_NEEDED", otherwise, fix="Add --yes to do it unasked.")
    typer.confirm(question, abort=True, err=True)


def image_block(path: Path) -> dict[str, Any]:
    """
    Convert an image to a block of a message.

    :raises Refused: if it cannot be read, or its ending is not that of a supported image type
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
