"""
The content codings of HTTP (RFC 9110 §8.4.1), decoded in pieces up to a limit.

A few hundred bytes can decode to gigabytes, so a decoder has a maximum output and stops there.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# The bytes read and the bytes returned at a time, so that a limit is exceeded by no more than this.
_PIECE_BYTES = 64 * 1024
# RFC 9659 allows the zstd coding of HTTP a window of at most 8 MB.
_ZSTD_WINDOW_LOG = 23
# In Python's zlib module, this means that a gzip header is required.
_GZIP_WINDOW = 31


class EncodingUnknown(Exception):
    """The content coding has no decoder."""


class Damaged(Exception):
    """The bytes are not in the named coding, are incomplete, or continue after its end."""


class TooLong(Exception):
    """The decoded bytes are longer than the limit."""


class Decoder:
    """
    Decodes one body, in any number of pieces.

    :raises EncodingUnknown: if the coding is not one of `gzip`, `deflate`, `br` and `zstd`
    """

    def __init__(self, encoding: str, *, bytes_max: int) -> None:
        make = _CODINGS.get(encoding.strip().lower())
        if make is None:
            raise EncodingUnknown
        self._coding = make()
        self._bytes_left = bytes_max

    def feed(self, data: bytes) -> bytes:
        """
        Decode the next bytes.

        :raises Damaged: if they are not in this coding
        :raises TooLong: if the decoded bytes exceed the limit
        """
        # A decoder copies the input that it does not consume at once: nearly all of a long body at each step.
        return b"".join(
            piece for at in range(0, len(data), _PIECE_BYTES) for piece in self._pieces(data[at : at + _PIECE_BYTES])
        )

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        piece = b""
        while data or (piece and not self._coding.is_finished):
            if self._coding.is_finished:
                # Each of millions of tiny members would copy all bytes that follow it.
                raise Damaged
            try:
                piece, data = self._coding.take(data)
            except (zlib.error, brotli.error, zstd.ZstdError) as fault:
                raise Damaged from fault
            self._bytes_left -= len(piece)
            if self._bytes_left < 0:
                raise TooLong
            yield piece

    def finish(self) -> None:
        """:raises Damaged: if the body ended before its coding did"""
        if not self._coding.is_finished:
            raise Damaged


def decode(data: bytes, encoding: str, *, bytes_max: int) -> bytes:
    """
    Decode a whole body.

    :raises EncodingUnknown: if there is no decoder for the coding
    :raises Damaged: if it is not in that coding, or incomplete
    :raises TooLong: if it decodes to more than `bytes_max`
    """
    decoder = Decoder(encoding, bytes_max=bytes_max)
    decoded = decoder.feed(data)
    decoder.finish()
    return decoded


class _Zlib:
    def __init__(self, window: int) -> None:
        self._decoder = zlib.decompressobj(window)

    @property
    def is_finished(self) -> bool:
        return self._decoder.eof

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Decode a piece, and return the bytes that are still to be decoded."""
        piece = self._decoder.decompress(data, _PIECE_BYTES)
        return piece, self._decoder.unconsumed_tail or self._decoder.unused_data


class _Brotli:
    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()

    @property
    def is_finished(self) -> bool:
        finished: bool = self._decoder.is_finished()
        return finished

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        # It buffers what it has not decoded yet, and accepts no input until that is done.
        piece: bytes = self._decoder.process(data, output_buffer_limit=_PIECE_BYTES)
        return piece, b""


class _Zstd:
    def __init__(self) -> None:
        self._decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})

    @property
    def is_finished(self) -> bool:
        return self._decoder.eof

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        # It buffers what it has not decoded yet.
        piece = self._decoder.decompress(data, _PIECE_BYTES)
        return piece, self._decoder.unused_data


_CODINGS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: _Zlib(_GZIP_WINDOW),
    "x-gzip": lambda: _Zlib(_GZIP_WINDOW),
    "deflate": lambda: _Zlib(zlib.MAX_WBITS),
    "br": _Brotli,
    "zstd": _Zstd,
}
