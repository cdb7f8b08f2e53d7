"""Content codings: what was compressed comes back, in any pieces, and never more of it than the limit."""

import contextlib
import gzip
import random
import tracemalloc
import zlib
from functools import partial

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rensei.core.encodings import Damaged, Decoder, EncodingUnknown, TooLong, decode, zstd

COMPRESSORS = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstd.compress}
# How hard it tried does not show in a body of one byte, or in one that cannot be compressed, and takes seconds.
FAST_COMPRESSORS = {**COMPRESSORS, "br": partial(brotli.compress, quality=1)}
MEGABYTE = 1024 * 1024

codings = st.sampled_from(sorted(COMPRESSORS))
bodies = st.one_of(
    st.binary(max_size=3000),
    st.builds(lambda unit, times: unit * times, st.binary(min_size=1, max_size=40), st.integers(0, 20_000)),
)


class TestDecoding:
    @settings(max_examples=400, deadline=None)
    @given(body=bodies, coding=codings, step=st.integers(1, 500))
    def test_in_any_pieces_gives_what_was_compressed(self, body: bytes, coding: str, step: int) -> None:
        compressed = COMPRESSORS[coding](body)
        decoder = Decoder(coding, bytes_max=len(body))

        found = b"".join(decoder.feed(compressed[at : at + step]) for at in range(0, len(compressed), step))
        decoder.finish()

        assert found == body

    @settings(max_examples=200, deadline=None)
    @given(body=bodies.filter(len), coding=codings)
    def test_stops_at_the_limit(self, body: bytes, coding: str) -> None:
        with pytest.raises(TooLong):
            decode(COMPRESSORS[coding](body), coding, bytes_max=len(body) - 1)

    @settings(max_examples=200, deadline=None)
    @given(body=bodies, coding=codings, share=st.floats(0, 1, exclude_max=True))
    def test_of_a_part_is_refused(self, body: bytes, coding: str, share: float) -> None:
        compressed = COMPRESSORS[coding](body)

        with pytest.raises(Damaged):
            decode(compressed[: int(len(compressed) * share)], coding, bytes_max=len(body))

    @settings(max_examples=300, deadline=None)
    @given(garbage=st.binary(max_size=2000), coding=codings)
    def test_of_anything_ends_in_bytes_or_in_a_refusal(self, garbage: bytes, coding: str) -> None:
        with contextlib.suppress(Damaged, TooLong):
            assert len(decode(garbage, coding, bytes_max=10_000)) <= 10_000

    @pytest.mark.parametrize("coding", sorted(COMPRESSORS))
    def test_refuses_what_goes_on_after_its_end(self, coding: str) -> None:
        whole = COMPRESSORS[coding](b"")

        with pytest.raises(Damaged):
            decode(whole * 1000, coding, bytes_max=MEGABYTE)

    @pytest.mark.parametrize("coding", sorted(COMPRESSORS))
    def test_holds_no_more_than_the_limit_asks_for(self, coding: str) -> None:
        bomb = FAST_COMPRESSORS[coding](bytes(200 * MEGABYTE))
        tracemalloc.start()
        with pytest.raises(TooLong):
            decode(bomb, coding, bytes_max=MEGABYTE)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert most < 12 * MEGABYTE

    @pytest.mark.parametrize("coding", sorted(COMPRESSORS))
    def test_hands_each_byte_on_a_few_times_however_long_the_body_is(
        self, monkeypatch: pytest.MonkeyPatch, coding: str
    ) -> None:
        body = random.Random(1).randbytes(4 * MEGABYTE)
        decoder = Decoder(coding, bytes_max=len(body))
        take = decoder._coding.take
        handed: list[int] = []
        monkeypatch.setattr(decoder._coding, "take", lambda data: (handed.append(len(data)), take(data))[1])

        assert decoder.feed(FAST_COMPRESSORS[coding](body)) == body
        assert sum(handed) < 3 * len(body)

    def test_refuses_a_window_that_the_coding_may_not_have(self) -> None:
        options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.enable_long_distance_matching: 1}
        body = random.Random(1).randbytes(MEGABYTE) * 20
        frame = zstd.compress(body[: 17 * MEGABYTE], options=options)

        with pytest.raises(Damaged):
            decode(frame, "zstd", bytes_max=100 * MEGABYTE)

    @pytest.mark.parametrize("coding", ["", "identity", "compress", "gzip, br", "gzip;q=1", "\x00"])
    def test_knows_no_other_coding(self, coding: str) -> None:
        with pytest.raises(EncodingUnknown):
            Decoder(coding, bytes_max=1)
