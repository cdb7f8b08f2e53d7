"""The reader of server-sent events."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrations.outbound.http import AnswerRefused
from integrations.providers.anthropic.events import read_events

STREAM = (
    "event: ping\ndata: {}\n\n"
    ': a comment\nid: 5\ndata: {"text": "漢字"}\ndata: more\n\n'
    "retry: 1\n\n"
    "event: last\ndata:x\n\n"
)
EVENTS = [("ping", "{}"), ("", '{"text": "漢字"}\nmore'), ("last", "x")]


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


class TestReadEvents:
    @given(
        places=st.lists(st.integers(0, 1000), max_size=30),
        ending=st.sampled_from(["\n", "\r\n", "\r"]),
        mark=st.sampled_from(["", "\ufeff"]),
        left_out=st.integers(0, 2),
    )
    def test_reads_the_same_however_the_bytes_arrive(self, places, ending, mark, left_out):
        stream = STREAM.removesuffix("\n" * left_out)
        data = (mark + stream.replace("\n", ending)).encode()

        assert list(read_events(_cut(data, places))) == EVENTS

    @given(data=st.binary(max_size=500))
    def test_survives_any_bytes(self, data):
        for name, text in read_events([data]):
            assert isinstance(name, str)
            assert text is not None

    @given(endings=st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=20, max_size=20))
    def test_takes_the_ends_of_lines_as_each_comes(self, endings):
        lines = STREAM.split("\n")
        mixed = "".join(line + ending for line, ending in zip(lines, endings, strict=False))
        # A return and a feed in a row end one line, wherever the two come from.
        plain = mixed.replace("\r\n", "\n").replace("\r", "\n")

        assert list(read_events([mixed.encode()])) == list(read_events([plain.encode()]))

    @pytest.mark.parametrize(
        "chunk", [b"x" * 65536, b"data: " + b"x" * 65530 + b"\n"], ids=["one endless line", "one endless event"]
    )
    def test_gives_up_on_what_never_ends(self, chunk):
        began = time.process_time()

        with pytest.raises(AnswerRefused):
            list(read_events(chunk for _ in range(10_000)))

        assert time.process_time() - began < 2
