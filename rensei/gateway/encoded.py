"""Compressed request bodies, with a `content-encoding`."""

from rensei.core.api import LARGE_BODY_LIMIT, RequestTooLarge
from rensei.core.encodings import Damaged, EncodingUnknown, TooLong, decode
from rensei.core.errors import FieldError, RenseiError, Said

POINTER = "/headers/content-encoding"
NAME_CHARACTERS_MAX = 40


class EncodingNotRead(RenseiError):
    """The body has a compression that the gateway does not support."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415
    title = "Unsupported content encoding"
    message = Said(
        "The content-encoding '{encoding}' is not read here.", "Send the body as it is, or by one of gzip, br, zstd."
    )


def read(raw: bytes, *, encoding: str) -> bytes:
    """
    Decompress a body.

    :raises EncodingNotRead: if the encoding is unknown, or there are several
    :raises RequestTooLarge: if the decompressed body exceeds the limit
    :raises FieldError: if the body is damaged
    """
    try:
        return decode(raw, encoding, bytes_max=LARGE_BODY_LIMIT)
    except EncodingUnknown:
        raise EncodingNotRead(encoding=encoding[:NAME_CHARACTERS_MAX]) from None
    except TooLong:
        raise RequestTooLarge(limit=LARGE_BODY_LIMIT) from None
    except Damaged:
        raise FieldError(pointer=POINTER, reason=f"The body is not whole, or not compressed by {encoding}.") from None
