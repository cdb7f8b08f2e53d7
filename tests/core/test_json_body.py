"""Bodies that only look like data."""

import pytest

from rensei.core.errors import FieldError
from rensei.core.json_body import DEPTH_LIMIT, read_json


class TestReadJson:
    @pytest.mark.parametrize(
        ("body", "document"),
        [
            (b"{}", {}),
            (b"[]", []),
            (b"null", None),
            (b'{"a": [1, -1.5, true, "\\ud83d\\ude00 \\\\u0000"]}', {"a": [1, -1.5, True, "😀 \\u0000"]}),
            (str(2**63 - 1).encode(), 2**63 - 1),
        ],
    )
    def test_reads_what_is_json(self, body, document):
        assert read_json(body) == document

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"{'a': 1}",
            b'{"a": 1,}',
            b'{"a": NaN}',
            b'{"a": Infinity}',
            b'{"a": -Infinity}',
            b"\xff\xfe{\x00}\x00",
            b'"\xff"',
            b'"\xed\xa0\x80"',
            b'"a\x00b"',
            b"\xef\xbb\xbf{}",
            b"1" * 5000,
            b"[" * 100_000,
        ],
    )
    def test_refuses_what_is_not(self, body):
        with pytest.raises(FieldError, match="not valid JSON"):
            read_json(body)

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            (b'{"a": 1, "a": 1}', "/a"),
            (b'{"a": ["x", "nul\\u0000"]}', "/a/1"),
            (b'{"nul\\u0000": 1}', ""),
            (b'{"a": "\\ud800"}', "/a"),
            (b'{"a": {"b": "\\udfff\\ud800"}}', "/a/b"),
            (b'{"a/b": 9223372036854775808}', "/a~1b"),
            (b'{"a": -9223372036854775809}', "/a"),
            (b'{"a": 1e999}', "/a"),
            (b'{"a": -1e999}', "/a"),
        ],
    )
    def test_points_at_a_value_that_could_not_be_stored(self, body, pointer):
        with pytest.raises(FieldError) as refusal:
            read_json(body)

        assert refusal.value.errors[0]["pointer"] == pointer
        refusal.value.detail.encode()

    def test_goes_no_deeper_than_its_limit(self):
        assert read_json(b"[" * DEPTH_LIMIT + b"]" * DEPTH_LIMIT)

        with pytest.raises(FieldError, match="nested deeper"):
            read_json(b"[" * (DEPTH_LIMIT + 2) + b"]" * (DEPTH_LIMIT + 2))
