"""
Decodes pictures in a separate process: a few bytes can expand to gigabytes, and a decoder can crash.

`pictures.py` starts this file by its path, without the rest of Rensei, and sends one picture after the other. The
process exits at the end of its input.
"""

import contextlib
import io
import resource
import struct
import sys
import warnings
from typing import BinaryIO

from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "GIF", "WEBP")
# Anthropic's limit. https://platform.claude.com/docs/en/build-with-claude/vision
ENCODED_BYTES_MAX = 10_000_000
# A request: the picture's size in bytes, the maximum pixels of a side, the maximum memory in bytes.
REQUEST = struct.Struct("!IIQ")
# A reply: the result, the picture's format, its sides, the size of the data that follows.
REPLY = struct.Struct("!c4sIII")
KEPT, SCALED, DAMAGED, TOO_LARGE = b"K", b"S", b"D", b"L"
# What Pillow raises for a picture that is damaged, or needs more than the memory limit.
FAULTS = (OSError, ValueError, SyntaxError, EOFError, OverflowError, IndexError, TypeError, MemoryError)
_SIDE_PIXELS_MIN = 200

warnings.simplefilter("error", Image.DecompressionBombWarning)


def encoded_bytes(data: bytes) -> int:
    """Return the length of the base64 of so many bytes."""
    return (len(data) + 2) // 3 * 4


def _answer(requests: BinaryIO, replies: BinaryIO) -> None:
    while head := requests.read(REQUEST.size):
        size, side_max, memory_max = REQUEST.unpack(head)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (memory_max, resource.getrlimit(resource.RLIMIT_AS)[1]))
        data = requests.read(size)
        try:
            verdict, kind, sides, fitted = _fit(data, side_max=side_max)
        except (*FAULTS, Image.DecompressionBombError, Image.DecompressionBombWarning):
            verdict, kind, sides, fitted = DAMAGED, "", (0, 0), b""
        replies.write(REPLY.pack(verdict, kind.encode(), *sides, len(fitted)) + fitted)
        replies.flush()


def _fit(data: bytes, *, side_max: int) -> tuple[bytes, str, tuple[int, int], bytes]:
    """Scale a picture down if Anthropic would refuse it as it is. Decode it always, to check that it is complete."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if max(image.size) <= side_max and encoded_bytes(data) <= ENCODED_BYTES_MAX:
            image.load()
            return KEPT, "", image.size, b""
        kind = "JPEG" if image.format == "JPEG" else "PNG"
        # A JPEG is scaled down while it is decoded.
        image.draft(None, (side_max, side_max))
        side = min(side_max, max(image.size))
        while side >= _SIDE_PIXELS_MIN:
            # In place, so that the large picture is not kept in memory too.
            image.thumbnail((side, side))
            upright = ImageOps.exif_transpose(image)
            fitted = _encode(upright, kind)
            if encoded_bytes(fitted) <= ENCODED_BYTES_MAX:
                return SCALED, kind, upright.size, fitted
            side = side * 3 // 4
    return TOO_LARGE, "", (0, 0), b""


def _encode(image: Image.Image, kind: str) -> bytes:
    """Encode a photograph as JPEG, and everything else as PNG, which keeps transparency and sharp edges."""
    out = io.BytesIO()
    if kind == "JPEG":
        image.convert("RGB").save(out, "JPEG", quality=90)
    else:
        (image if image.mode in ("RGB", "RGBA", "L", "LA") else image.convert("RGBA")).save(out, "PNG")
    return out.getvalue()


if __name__ == "__main__":
    _answer(sys.stdin.buffer, sys.stdout.buffer)
