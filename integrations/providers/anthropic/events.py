"""
Server-sent events, read in time and memory proportional to the size of the answer.

The SDK's reader joins an unfinished line with every new piece, so a line of some megabytes would occupy
a worker for minutes. https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator

from integrations.outbound.http import AnswerRefused
from rensei.core.limits import limit

_EVENT_BYTES_MAX = limit(
    8 * 1024 * 1024,
    "bytes",
    what="Event of a provider's answer",
    told="the caller: `PROVIDER_STREAM_BROKEN`, charged as far as reported",
)
_EMPTY_LINES = re.compile(rb"\n{3,}")


def read_events(chunks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """
    Read events, each as its name and data.

    :raises AnswerRefused: if an event exceeds the size limit
    """
    reader = EventReader()
    for chunk in chunks:
        yield from reader.feed(chunk)
    yield from reader.close()


class EventReader:
    """Reads events from bytes as they arrive, in pieces of any size."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._pieces_size = 0
        self._name = ""
        self._data: list[str] = []
        self._size = 0
        self._has_begun = False
        self._after_return = False

    @property
    def size(self) -> int:
        """Return the bytes of the event that is not complete yet."""
        return self._size + self._pieces_size

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """
        Process the next piece, and return the events that it completes.

        :raises AnswerRefused: if an event exceeds the size limit
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
        Return the last event, if no empty line has terminated it.

        The specification drops it, because it may be incomplete. It is kept here, because a server that omits the
        last empty line reports the call's usage in this event. An incomplete event is not valid JSON and is ignored.
        """
        yield from self.feed(b"\n")
        yield from self._event()

    def _event(self) -> Iterator[tuple[str, str]]:
        if self._data:
            yield self._name, "\n".join(self._data)
        self._name, self._data, self._size = "", [], 0

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        """Split into lines, which end with a line feed, a carriage return, or both."""
        if self._after_return and chunk:
            # The previous carriage return has ended its line. This is the second half of that line ending.
            chunk = chunk.removeprefix(b"\n")
            self._after_return = False
        if b"\r" in chunk:
            self._after_return = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        # Empty lines beyond the one that ends an event mean nothing, and cost the sender a byte each.
        chunk = _EMPTY_LINES.sub(b"\n\n", chunk)
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
