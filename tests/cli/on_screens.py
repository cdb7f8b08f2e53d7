"""
Run lines of the `rensei` command line, each in a fork of one process, and print what each wrote as JSON.

Standard input is a JSON list of lines, each with the width of its pseudo-terminal, or null for a pipe. Importing the
command takes longer than most commands do, so it is imported once.
"""

import contextlib
import fcntl
import json
import os
import pty
import shlex
import struct
import sys
import termios
from typing import Any

from rensei.cli.main import main
from tests.cli import prepared  # noqa: F401 - loads once what each command would load


def run(line: str, columns: int | None) -> dict[str, Any]:
    ours, theirs = os.pipe() if columns is None else pty.openpty()
    if columns is not None:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = os.fork()
    if child == 0:
        sys.argv = shlex.split(line)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(theirs, 1)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
        os._exit(code)
    os.close(theirs)
    parts = []
    with os.fdopen(ours, "rb", buffering=0) as screen, contextlib.suppress(OSError):
        # Linux tells the end of a pseudo-terminal by an error.
        while part := screen.read(65536):
            parts.append(part)
    _, status = os.waitpid(child, 0)
    written = b"".join(parts).decode().replace("\r\n", "\n")
    return {"code": os.waitstatus_to_exitcode(status), "written": written}


if __name__ == "__main__":
    print(json.dumps([run(line, columns) for line, columns in json.load(sys.stdin)]))
