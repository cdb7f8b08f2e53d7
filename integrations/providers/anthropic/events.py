"""
Server-sent events, read in time and memory that grow no faster than the answer.

The SDK's reader joins an unfinished line to all that came before at every piece, so a line of some megabytes would keep
a worker busy for minutes. https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator

from integrations.outbound.http import AnswerRefused

_EVENT_BYTES_MAX = 8 * 1024 * 1024


def read_events(chunks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """
    Read events, each as its name and data.

    :raises AnswerRefused: if an event is larger than any that there is
    """
    reader = EventReader()
    for chunk in chunks:
        yield from reader.feed(chunk)
    yield from reader.close()


class EventReader:
    """Reads events from bytes as they come, in pieces of any size."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._pieces_size = 0
        self._name = ""
        self._data: list[str] = []
        self._size = 0
        self._has_begun = False
        self._after_return = False

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """
        Take the next piece, and give the events that it completes.

        :raises AnswerRefused: if an event is larger than any that there is
        """
        for line in self._lines(chunk):
            if not line:
                yield from self._event()
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

    def close(self) -> Iterator[tuple[str, str]]:
        """
        Give the event that no empty line has ended, after the last piece.

        The specification leaves it out, because it may not be whole. It is kept, because a server that forgets the
        last empty line has told in this event what the call used. Half of one is no JSON, and says nothing.
        """
        yield from self.feed(b"\n")
        yield from self._event()

    def _event(self) -> Iterator[tuple[str, str]]:
        if self._data:
            yield self._name, "\n".join(self._data)
        self._name, self._data, self._size = "", [], 0

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        """Cut at the ends of lines, which are a line feed, a carriage return, or both."""
        if self._after_return and chunk:
            # The return that came last has ended its line; this is the other half of that end.
            chunk = chunk.removeprefix(b"\n")
            self._after_return = False
        if b"\r" in chunk:
            self._after_return = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            if self._pieces_size:
                piece = b"".join([*self._pieces, piece])
            if not self._has_begun:
                piece = piece.removeprefix(BOM_UTF8)
                self._has_begun = True
            yield piece
            self._pieces, self._pieces_size = [], 0
        self._pieces.append(rest)
        self._pieces_size += len(rest)
        if self._pieces_size > _EVENT_BYTES_MAX:
            raise AnswerRefused("A line of the answer is larger than this server reads.")
