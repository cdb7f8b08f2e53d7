"""
The `rensei` command in a fork of one process that has loaded it: loading takes longer than most commands do.

`python -m tests.cli.prepared SOCKET` is that process. Each connection brings the words, the folder, the environment and
the open files of one call, and gets the code with which it ended. `install` writes the program that makes the calls.
"""

import functools
import gc
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

# Loaded once here, and not in each fork.
import anyio  # noqa: F401
import httpcore2  # noqa: F401
import httpx2  # noqa: F401
import pydantic  # noqa: F401
import rich.console
import rich.table  # noqa: F401
import typer._adapters
import typer.main

from rensei.cli.main import app, main
from tests.architecture.modules import ROOT
from tests.waiting import wait_until

# Typer makes every command anew at each call, which takes longer than most commands do: here they are made once.
vars(typer.main)["get_command"] = functools.cache(typer.main.get_command)
typer.main.get_command(app)

# It starts in milliseconds, as it loads none of Python's library. A call with a variable that Python reads when it
# starts has a process of its own.
CALLER = """\
#!{python} -IS
import _socket, marshal, os, sys

words = sys.argv[1:]
os.environ["PYTHONPATH"] = {root!r}
if "PYTHONIOENCODING" in os.environ:
    os.execv({python!r}, [{python!r}, "-P", "-m", "rensei.cli", *words])
line = _socket.socket(_socket.AF_UNIX)
line.connect({place!r})
files = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
line.sendmsg([b"."], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)])
line.sendall(marshal.dumps((words, os.getcwd(), dict(os.environ))))
line.shutdown(_socket.SHUT_WR)
code = int(line.recv(8) or 1)
if code < 0:
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@contextmanager
def start(folder: Path) -> Iterator[Path]:
    """Start the process, and give the folder with the program that calls it."""
    place, programs = folder / "socket", folder / "bin"
    programs.mkdir()
    environment = {"HOME": os.devnull, "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    # Without a terminal of its own, so that nothing is asked at the terminal of the tests.
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.cli.prepared", str(place)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        wait_until(lambda: place.exists() or process.poll() is not None, what="the process")
        assert process.poll() is None
        program = programs / "rensei"
        program.write_text(CALLER.format(python=sys.executable, place=str(place), root=str(ROOT)))
        program.chmod(0o755)
        yield programs


def serve(place: str) -> None:
    """Serve each connection in a fork, until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # At its end each fork would look for garbage among all that was loaded.
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(64)
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            line, _ = listener.accept()
            with line:
                if os.fork() == 0:
                    listener.close()
                    _answer(line)
                    return


def _answer(line: socket.socket) -> None:
    """Run the command in a fork of this fork, which ends as a process of its own would, and send its code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(line, 1, 3)
    with line.makefile("rb") as message:
        words, folder, environment = marshal.loads(message.read())
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        line.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    line.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # What they know of their files is of others.
    sys.stdin, sys.stdout = _opened(sys.stdin, "r"), _opened(sys.stdout, "w")
    sys.argv = ["rensei", *words]
    main()


def _opened(stream: TextIO, mode: str) -> TextIO:
    """Open a stream of this process anew, as Python does when it starts."""
    return open(
        stream.fileno(),
        mode,
        encoding=stream.encoding,
        errors=stream.errors,
        buffering=1 if os.isatty(stream.fileno()) else -1,
        closefd=False,
    )


if __name__ == "__main__":
    serve(sys.argv[1])
