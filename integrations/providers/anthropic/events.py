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
    reader = EventReader()
    for chunk in chunks:
        yield from reader.feed(chunk)


class EventReader:
    """Reads events from bytes as they come, in pieces of any size."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._pieces_size = 0
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """
        Take the next piece, and give the events that it completes.

        :raises AnswerRefused: if an event is larger than any that there is
        """
        for line in self._lines(chunk):
            if not line:
                if self._data:
                    yield self._name, "\n".join(self._data)
                self._name, self._data, self._size = "", [], 0
                continue
            self._size += len(line)
            if self._size > _EVENT_BYTES_MAX:
                raise AnswerRefused("An event of the answer is larger than this server reads.")
            field, _, value = line.decode(errors="replace").partition(":")
            match field:
                case "event":
                    self._name = value.removeprefix(" ")
                case "data":
                    self._data.append(value.removeprefix(" "))

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            if self._pieces_size:
                piece = b"".join([*self._pieces, piece])
            yield piece.removesuffix(b"\r")
            self._pieces, self._pieces_size = [], 0
        self._pieces.append(rest)
        self._pieces_size += len(rest)
        if self._pieces_size > _EVENT_BYTES_MAX:
            raise AnswerRefused("A line of the answer is larger than this server reads.")
