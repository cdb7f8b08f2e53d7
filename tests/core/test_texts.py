import json

import pytest

from rensei.core.texts import read_storable


class TestReadStorable:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('{"a": "\\u0000"}', {"a": "\ufffd"}),
            ('{"a": ["x\\ud83d", {"\\udc00": 1}]}', {"a": ["x\ufffd", {"\ufffd": 1}]}),
            ('{"a": "\\ud83d\\ude00 \\u00e9"}', {"a": "😀 é"}),
            (b'{"a": "\xed\xa0\x80"}', {"a": "\ufffd\ufffd\ufffd"}),
            ("[1, 2.5, null, true]", [1, 2.5, None, True]),
            ("[NaN, -Infinity, 1e400]", ["\ufffd"] * 3),
            (f"[{'9' * 1000}, -{'9' * 5000}]", [int("9" * 1000), "\ufffd"]),
        ],
    )
    def test_replaces_what_cannot_be_stored(self, text: str | bytes, expected: object) -> None:
        found = read_storable(text)

        assert found == expected
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()

    @pytest.mark.parametrize("text", ["", "{", b"\xff\xfe", "[" * 100_000])
    def test_raises_for_what_is_no_json(self, text: str | bytes) -> None:
        with pytest.raises((ValueError, RecursionError)):
            read_storable(text)
