"""Request bodies that come compressed, with a `content-encoding`."""

from rensei.core.api import LARGE_BODY_LIMIT, RequestTooLarge
from rensei.core.encodings import Damaged, EncodingUnknown, TooLong, decode
from rensei.core.errors import FieldError, RenseiError

POINTER = "/headers/content-encoding"
NAME_CHARACTERS_MAX = 40


class EncodingNotRead(RenseiError):
    """The body is compressed in a way that the gateway cannot undo."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415
    title = "Unsupported content encoding"
    message = "The content-encoding '{encoding}' is not read here. Send the body as it is, or by one of gzip, br, zstd."


def read(raw: bytes, *, encoding: str) -> bytes:
    """
    Undo the compression of a body.

    :raises EncodingNotRead: if it is of an unknown kind, or of several
    :raises RequestTooLarge: if it stands for more than any call takes
    :raises FieldError: if it is damaged
    """
    try:
        return decode(raw, encoding, bytes_max=LARGE_BODY_LIMIT)
    except EncodingUnknown:
        raise EncodingNotRead(encoding=encoding[:NAME_CHARACTERS_MAX]) from None
    except TooLong:
        raise RequestTooLarge(limit=LARGE_BODY_LIMIT) from None
    except Damaged:
        raise FieldError(pointer=POINTER, reason=f"The body is not whole, or not compressed by {encoding}.") from None
