"""
Server-sent events, read in time and memory that grow no faster than the answer.

The SDK's reader joins an unfinished line to all that came before at every piece, so a line of some megabytes would keep
a worker busy for minutes. https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from collections.abc import Iterable, Iterator

from integrations.outbound import AnswerRefused

_EVENT_BYTES_MAX = 8 * 1024 * 1024


def read_events(chunks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """
    Read events, each as its name and data. One that is not ended by an empty line is not whole, and is left out.

    :raises AnswerRefused: if an event is larger than any that there is
    """
    name, data, size = "", list[str](), 0
    for line in _lines(chunks):
        if not line:
            if data:
                yield name, "\n".join(data)
            name, data, size = "", [], 0
            continue
        size += len(line)
        if size > _EVENT_BYTES_MAX:
            raise AnswerRefused("An event of the answer is larger than this server reads.")
        field, _, value = line.decode(errors="replace").partition(":")
        match field:
            case "event":
                name = value.removeprefix(" ")
            case "data":
                data.append(value.removeprefix(" "))


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    pieces, size = list[bytes](), 0
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            yield b"".join([*pieces, piece]).removesuffix(b"\r")
            pieces, size = [], 0
        pieces.append(rest)
        size += len(rest)
        if size > _EVENT_BYTES_MAX:
            raise AnswerRefused("A line of the answer is larger than this server reads.")
