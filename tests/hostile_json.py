"""Bodies that are made to cost much: generated, each of any size, so that its cost at two sizes can be compared."""

import random
from collections.abc import Callable

# `#` stands for a number that is another one in each repetition, and `%` for one of eight.
_FRAGMENTS = (
    *('[]', '{}', '[[]]', '{"":0}', '{"a":{}}', '{"#":0}', '{"a":1,"a":2}', '{"a":', '[1,', '[', ']', '{', '}'),
    *('"#":0', '"%":0', '"a":0', '"a":"a"', '"#":[]', '"#"', '"%"', '""', '"é#"', '"😀"', "'a'", '/*#*/'),
    *(r'"\\"', r'"\""', r'"\u0041"', r'"\u003a"', r'"\u0000"', r'"\ud800"', r'"\ud83d\ude00"', r'\"', '\\', '"'),
    *('#', '0', '-1', '1.5', '1e999', '-1e-999', '123456789012345678901234567890', '9223372036854775808'),
    *('NaN', 'null', 'true', ':', ',', ' ', '\n', '\t', '\x00'),
)  # fmt: skip
_SEPARATORS = ("", ",", ",", ",", " , ", ":")
_FRAMES = (
    ("", ""), ("[", "]"), ("[", "]"), ("{", "}"), ("{", "}"), ('{"a":[', "]}"), ('"', '"'), ('{"a":"', '"}'),
    ("[", ""), ("{", ""), ('"', ""), ('{"a":[{', "}]}"), ('{"model":"m","messages":[', "]}"),
)  # fmt: skip


def hostile_body(seed: int) -> Callable[[int], bytes]:
    """Choose a kind of body by a seed. What is returned makes one of about so many bytes."""
    choice = random.Random(seed)
    fragments = choice.choices(_FRAGMENTS, k=choice.choice((1, 1, 1, 2, 3, 5)))
    separator = choice.choice(_SEPARATORS)
    head, tail = choice.choice(_FRAMES)
    nests = choice.random() < 0.2
    name_length = choice.choice((1, 1, 1, 8, 64, 1000))

    def body(size: int) -> bytes:
        unit = separator.join(fragments).replace("a", "a" * name_length)
        count = max(1, size // max(1, len(unit.encode()) + len(separator)))
        if nests:
            closing = unit[::-1].translate(str.maketrans("[{", "]}"))
            return (head + unit * (count // 2) + closing * (count // 2) + tail).encode()
        numbered = (unit.replace("#", str(place)).replace("%", str(place % 8)) for place in range(count))
        return (head + separator.join(numbered) + tail).encode()

    return body


def _repeated(unit: bytes, size: int) -> bytes:
    return b"[" + b",".join([unit] * (size // (len(unit) + 1))) + b"]"


WORST: dict[str, Callable[[int], bytes]] = {
    "lists": lambda size: _repeated(b"[]", size),
    "objects": lambda size: _repeated(b"{}", size),
    "members": lambda size: _repeated(b'{"":0}', size),
    "deep lists": lambda size: _repeated(b"[" * 250 + b"]" * 250, size),
    "deep objects": lambda size: _repeated(b'{"":' * 250 + b"0" + b"}" * 250, size),
    "numbers": lambda size: _repeated(b"1.5", size),
    "short texts": lambda size: _repeated(b'"ab"', size),
    "wide texts": lambda size: _repeated('"a€"'.encode(), size),
    "one wide text": lambda size: b'"' + b"a" * size + '😀"'.encode(),
    "names": lambda size: b"{" + b",".join(b'"%x":0' % place for place in range(size // 9)) + b"}",
    "a name twice": lambda size: b"{" + b",".join(b'"%x":0' % place for place in range(size // 9)) + b',"1":0}',
    "marks in a text": lambda size: b'["' + b",[{" * (size // 3) + b'"]',
    "texts without an end": lambda size: b'["' + b'\\"' * (size // 2),
    "marks in a text without an end": lambda size: b'{"' + b'\\",[' * (size // 4),
    "quotes": lambda size: b'"' * size,
    "brackets": lambda size: b"[" * size,
    "half characters": lambda size: b'"' + b"\\ud800" * (size // 6) + b'"',
    "escaped colons": lambda size: _repeated(b'{"\\u003a":0}', size),
}
