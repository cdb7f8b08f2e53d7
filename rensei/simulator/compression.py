"""Content codings of answers, which a server may apply although the client requested none."""

import sys
import zlib
from collections.abc import Callable

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Returns the encoded bytes of a piece of the body, and with True the end of the coding as well.
Compress = Callable[[bytes, bool], bytes]


def compressor(encoding: str) -> Compress:
    """Create the compressor of one body. An unknown coding is declared but not applied, which no client can read."""
    return _CODINGS.get(encoding, _none)()


def _none() -> Compress:
    return lambda piece, _: piece


def _zlib(window: int) -> Callable[[], Compress]:
    def make() -> Compress:
        coding = zlib.compressobj(wbits=window)
        return lambda piece, ends: coding.compress(piece) + coding.flush(zlib.Z_FINISH if ends else zlib.Z_SYNC_FLUSH)

    return make


def _brotli() -> Compress:
    coding = brotli.Compressor()
    return lambda piece, ends: coding.process(piece) + (coding.finish() if ends else coding.flush())


def _zstd() -> Compress:
    coding = zstd.ZstdCompressor()
    return lambda piece, ends: coding.compress(piece, coding.FLUSH_FRAME if ends else coding.FLUSH_BLOCK)


_CODINGS: dict[str, Callable[[], Compress]] = {
    "gzip": _zlib(zlib.MAX_WBITS + 16),
    "deflate": _zlib(zlib.MAX_WBITS),
    "br": _brotli,
    "zstd": _zstd,
}
