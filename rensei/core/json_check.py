"""Has JSON that takes long to read checked by `json_check_process.py`, before this process reads it."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from rensei.core import json_check_process
from rensei.core.computing import outside_of_turn
from rensei.core.errors import FieldError
from rensei.core.json_body import marks_in
from rensei.core.json_check_process import REPLY, REQUEST
from rensei.core.limits import limit

# What has fewer values is read in about a millisecond. A long text takes long too, but no longer than a good one does.
MARKS = 5_000
SECONDS_MAX = limit(
    5,
    "seconds",
    what="JSON body over about 5,000 values: time in which a process of low priority checks it before it is "
    "read, one at a time in each process",
    told="the caller: it waits for its turn; a body that is not checked in time is read without",
)
_PROGRAM = Path(json_check_process.__file__)
_PROJECT = _PROGRAM.parents[2]
# After a body that took too long, bodies are read without a check: the cores are busy, and each would wait as long.
_PAUSE_SECONDS = 60.0
# A refusal names one place of a body, whose names are cut.
_LARGEST_REFUSAL = 1024 * 1024


class _Checker:
    """The process, which starts with the first body, and again after a crash. It checks one body at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._paused_until = 0.0

    def check(self, body: bytes, *, is_stored: bool) -> None:
        """:raises FieldError: if the body is refused. A process that fails has refused nothing"""
        with self._lock:
            began = time.monotonic()
            if began < self._paused_until:
                return
            until = began + SECONDS_MAX
            try:
                line = self._line or self._start()
                line.settimeout(SECONDS_MAX)
                line.sendall(REQUEST.pack(is_stored, len(body)) + body)
                (size,) = REPLY.unpack(_received(line, REPLY.size, until=until))
                refusal = _received(line, size, until=until)
            except TimeoutError:
                self.end()
                self._paused_until = time.monotonic() + _PAUSE_SECONDS
                return
            except (OSError, EOFError):
                self.end()
                return
            except BaseException:
                # The next body must not be told what this one was refused for.
                self.end()
                raise
        if refusal:
            raise FieldError(**json.loads(refusal))

    def _start(self) -> socket.socket:
        self._line, theirs = socket.socketpair()
        with theirs:
            # Without our environment, which holds secrets, and outside our folder.
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-I", str(_PROGRAM), str(_PROJECT)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
            )
        return self._line

    def end(self) -> None:
        process, self._process = self._process, None
        line, self._line = self._line, None
        if line is not None:
            line.close()
        if process is not None:
            process.kill()
            process.wait()


_checker = _Checker()


def check_apart(body: bytes, *, is_stored: bool) -> None:
    """
    Check a body that takes long to read, as `read_object` does if it is to be stored, or as `parse_object` does. It has
    to be read afterwards, which is quick for what most bodies hold.

    :raises FieldError: if it is refused
    """
    if marks_in(body) > MARKS:
        with outside_of_turn():
            _checker.check(body, is_stored=is_stored)


def _received(line: socket.socket, size: int, *, until: float) -> bytes:
    """
    :raises EOFError: if the process has ended, or announces more than a refusal can be
    :raises TimeoutError: if it takes too long
    """
    if size > _LARGEST_REFUSAL:
        raise EOFError
    found = bytearray()
    while len(found) < size:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        line.settimeout(left)
        piece = line.recv(size - len(found))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)
