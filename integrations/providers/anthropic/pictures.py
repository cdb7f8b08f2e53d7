"""Has pictures decoded by `picture_process.py`, one at a time in each worker, with limits on memory and time."""

import contextlib
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from integrations.providers.anthropic import picture_process
from integrations.providers.anthropic.picture_process import ENCODED_BYTES_MAX, KEPT, REPLY, REQUEST, SCALED, TOO_LARGE
from integrations.providers.base import Interrupted
from rensei.core.limits import limit
from rensei.core.shares import ThreadTurns

PIXELS_MAX = limit(
    64_000_000, "pixels", what="Picture of a run", told="the caller: 422 `INVALID_IMAGE`, at once or as the run's error"
)
MEMORY_MAX = limit(
    1024 * 1024 * 1024,
    "bytes",
    what="Picture of a run: memory of the process that unpacks it, one at a time in each worker",
    told="the run: 422 `INVALID_IMAGE`",
)
SECONDS_MAX = limit(
    30, "seconds", what="Picture of a run: time in which it is unpacked", told="the run: 422 `INVALID_IMAGE`"
)
_PROGRAM = Path(picture_process.__file__)
turns = ThreadTurns(1)


def _read(replies: IO[bytes], size: int) -> bytes:
    """
    Read a part of a reply. The picture may have taken over the process, so its sizes are not trusted.

    :raises EOFError: if the part is incomplete, or exceeds the size limit
    """
    if size > ENCODED_BYTES_MAX or len(found := replies.read(size)) != size:
        raise EOFError
    return found


class PictureRefused(Exception):
    """A picture cannot be prepared. The text states the reason."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A picture that was scaled down. `kind` is Pillow's name of its format."""

    data: bytes
    kind: str
    width: int
    height: int


class Unpacker:
    """
    A process that decodes the pictures of one run. It starts with the first picture, and again after a crash.

    Its memory never holds pictures of another run.
    """

    def __init__(self, *, org_id: str) -> None:
        self._org_id = org_id
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def fit(self, data: bytes, *, side_max: int, seconds_left: float) -> Fitted | None:
        """
        Decode a picture, and scale it down if it is too large. None means that it is complete and fits as it is.

        :raises PictureRefused: if it is damaged, or its process ended for any reason
        :raises Interrupted: if the time is over before decoding starts
        """
        until = time.monotonic() + seconds_left
        with contextlib.ExitStack() as turn:
            try:
                turn.enter_context(turns.of(self._org_id, seconds=seconds_left))
            except TimeoutError:
                raise Interrupted from None
            return self._fit(data, side_max=side_max, seconds=min(until - time.monotonic(), SECONDS_MAX))

    def _fit(self, data: bytes, *, side_max: int, seconds: float) -> Fitted | None:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(seconds, process.kill)
        watch.start()
        try:
            process.stdin.write(REQUEST.pack(len(data), side_max, MEMORY_MAX) + data)
            process.stdin.flush()
            verdict, kind, width, height, size = REPLY.unpack(_read(process.stdout, REPLY.size))
            fitted = _read(process.stdout, size)
        except (OSError, EOFError):
            self._end()
            raise PictureRefused("its content is damaged, or takes too much memory or time to unpack.") from None
        finally:
            watch.cancel()
        if verdict == KEPT:
            return None
        if verdict == SCALED:
            return Fitted(data=fitted, kind=kind.rstrip(b"\0").decode(), width=width, height=height)
        if verdict == TOO_LARGE:
            raise PictureRefused("it cannot be made small enough to send.")
        raise PictureRefused("its content is damaged or cut short.")

    def _start(self) -> subprocess.Popen[bytes]:
        # Without our environment, which holds secrets, and outside our folder.
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
        )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError):
                process.__exit__(None, None, None)
