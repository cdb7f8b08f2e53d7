"""
The content codings of HTTP (RFC 9110 §8.4.1), undone piece by piece and never beyond a limit.

A few hundred bytes can stand for gigabytes, so a decoder is told how much it may give, and stops there.
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

# What is taken at a time, and what is given at a time, so that a limit is passed by no more than this.
_PIECE_BYTES = 64 * 1024
# A window of 8 MB is the most that RFC 9659 lets the zstd coding of HTTP have.
_ZSTD_WINDOW_LOG = 23
# Python's module for zlib takes this as: a gzip header is required.
_GZIP_WINDOW = 31


class EncodingUnknown(Exception):
    """No decoder is known for a content coding."""


class Damaged(Exception):
    """The bytes are not of the coding that was named, end too early, or go on after its end."""


class TooLong(Exception):
    """What the bytes stand for is longer than the limit."""


class Decoder:
    """
    Decodes one body, in as many pieces as it comes.

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
        Give what the next bytes stand for.

        :raises Damaged: if they are not of this coding
        :raises TooLong: if it is more than the limit allows
        """
        # What a decoder does not take at once is copied, and that would be nearly all of a long body at each step.
        return b"".join(
            piece for at in range(0, len(data), _PIECE_BYTES) for piece in self._pieces(data[at : at + _PIECE_BYTES])
        )

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        piece = b""
        while data or (piece and not self._coding.is_finished):
            if self._coding.is_finished:
                # Millions of tiny ones, one after another, would each copy all that follows.
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
    :raises Damaged: if it is not of that coding, or not whole
    :raises TooLong: if it stands for more than `bytes_max`
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
        """Decode a piece, and give the bytes that are still to be decoded."""
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
        # It keeps what it has not decoded yet, and takes nothing new until that is done.
        piece: bytes = self._decoder.process(data, output_buffer_limit=_PIECE_BYTES)
        return piece, b""


class _Zstd:
    def __init__(self) -> None:
        self._decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})

    @property
    def is_finished(self) -> bool:
        return self._decoder.eof

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        # It keeps what it has not decoded yet.
        piece = self._decoder.decompress(data, _PIECE_BYTES)
        return piece, self._decoder.unused_data


_CODINGS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: _Zlib(_GZIP_WINDOW),
    "x-gzip": lambda: _Zlib(_GZIP_WINDOW),
    "deflate": lambda: _Zlib(zlib.MAX_WBITS),
    "br": _Brotli,
    "zstd": _Zstd,
}
