"""A body keeps its text, and what has to change is changed at its place."""

import json
from typing import Any

import pytest

from rensei.core.errors import FieldError
from rensei.gateway.body import Body


class TestWithValues:
    @pytest.mark.parametrize(
        ("raw", "changed", "expected"),
        [
            (b'{"model":"a", "x" : 1.0}', {"model": "b"}, b'{"model":"b", "x" : 1.0}'),
            (b' { "x" : [1,2] , "model" : "a" } \n', {"model": "b"}, b' { "x" : [1,2] , "model" : "b" } \n'),
            (b'{"a":1,"b":2}', {"b": 3, "a": 4}, b'{"a":4,"b":3}'),
            (b'{"a":1 }', {"b": {"c": "ü"}}, '{"a":1, "b": {"c":"ü"} }'.encode()),
            (b"{}", {"a": 1, "b": 2}, b'{"a": 1, "b": 2}'),
            ('{"é":"ü😀","a":1}'.encode(), {"a": 2}, '{"é":"ü😀","a":2}'.encode()),
        ],
        ids=["first", "spaces", "order", "added", "empty", "wide"],
    )
    def test_changes_nothing_else(self, raw: bytes, changed: dict[str, Any], expected: bytes) -> None:
        assert Body.read(raw).with_values(**changed).raw == expected

    def test_reads_what_it_wrote(self) -> None:
        body = Body.read(b'{"model": "a"}').with_values(model="b", added=[1])

        assert body.values == {"model": "b", "added": [1]}


class TestNameOf:
    @pytest.mark.parametrize(
        "raw",
        [
            b"{}",
            b'{"model": 5}',
            b'{"model": ""}',
            b'{"model": "\\ud800"}',
            b'{"model": "a\\u0000"}',
            b'{"model": "%s"}' % (b"x" * 301),
        ],
        ids=["missing", "number", "empty", "half", "nul", "long"],
    )
    def test_refuses_what_can_be_the_name_of_nothing(self, raw: bytes) -> None:
        with pytest.raises(FieldError):
            Body.read(raw).name_of("model")


class TestNumbers:
    @pytest.mark.parametrize("number", ["18446744073709551615", "-9223372036854775808", "1.5e308", "-0.0", "7"])
    def test_are_read_up_to_64_bits(self, number: str) -> None:
        assert Body.read(b'{"a": [{"b": %s}]}' % number.encode()).values == {"a": [{"b": json.loads(number)}]}

    @pytest.mark.parametrize(
        "number",
        ["18446744073709551616", "-18446744073709551616", "1" + "0" * 30, "9" * 100_000, "1e309", "-1e400"],
        ids=["2^64", "-2^64", "30 digits", "endless", "infinite", "minus infinite"],
    )
    def test_are_refused_beyond_it(self, number: str) -> None:
        with pytest.raises(FieldError, match=r"too large|not valid JSON"):
            Body.read(b'{"a": [{"b": %s}]}' % number.encode())


class TestABody:
    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"[]",
            b'{"a": 1',
            b'{"a": 1} x',
            b'{"a": 1, "a": 2}',
            b'{"a" 1}',
            b'{"a": 1,}',
            b"\xff{}",
            b"{a: 1}",
            b'{"a": %s1%s}' % (b"[" * 100000, b"]" * 100000),
        ],
        ids=["empty", "array", "cut", "more", "twice", "colon", "comma", "bytes", "bare", "deep"],
    )
    def test_that_is_no_json_object_is_refused(self, raw: bytes) -> None:
        with pytest.raises(FieldError):
            Body.read(raw)


class TestMayHold:
    def test_is_true_of_a_name_that_occurs_and_of_one_that_may_be_escaped(self) -> None:
        assert Body.read(b'{"a": {"citations": 1}}').may_hold(b"citations")
        assert Body.read(b'{"a": {"c\\u0069tations": 1}}').may_hold(b"citations")

    def test_is_false_of_any_other(self) -> None:
        assert not Body.read(b'{"a": "one\\nline"}').may_hold(b"citations")
