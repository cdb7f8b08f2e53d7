"""A process that makes one call to the provider. It has its own session, so that Ctrl-C reaches only this process."""

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from typing import Self

_STOP_SECONDS = 3.0
_COMPLAINT_BYTES = 2000
# Keys, addresses and accounts in the person's shell must not change who pays. The folder in which the `claude`
# program stores its login has no such effect.
_CLEARED = ("ANTHROPIC_", "CLAUDE_CODE_", "CLAUDECODE", "RENSEI_")


def clean_environment() -> dict[str, str]:
    """Return the inherited environment without variables that would sign a call differently, and without our token."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_CLEARED)}


class Child:
    """Writes the input of a process, reads its lines as they arrive, and ends all that it started."""

    def __init__(
        self, command: Sequence[str], *, text: str, extra: dict[str, str], in_empty_folder: bool = False
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rensei-call-") if in_empty_folder else None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._process = subprocess.Popen(  # noqa: S603 - the program was found on the person's own PATH
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            cwd=self._folder.name if self._folder else None,
            env=clean_environment() | extra,
            start_new_session=True,
        )
        threading.Thread(target=self._write, args=(text.encode(),), daemon=True).start()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self.stop()
        self._complaints.close()
        if self._folder:
            self._folder.cleanup()

    def next_line(self, *, seconds: float) -> str | None:
        """
        Wait for the next line; None after the last one.

        :raises queue.Empty: if no line arrived in time
        """
        return self._lines.get(timeout=seconds)

    def exit_code(self) -> int:
        return self._process.wait(timeout=_STOP_SECONDS)

    def complaint(self) -> str:
        """The end of its standard error."""
        size = self._complaints.seek(0, os.SEEK_END)
        self._complaints.seek(max(0, size - _COMPLAINT_BYTES))
        return self._complaints.read().decode(errors="replace").strip()

    def stop(self) -> None:
        """End the process and all that it has started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_STOP_SECONDS)
                return

    def _write(self, content: bytes) -> None:
        assert self._process.stdin
        # A process that ends early writes the reason at its end.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(content)

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as pipe:
            for line in pipe:
                self._lines.put(line.decode(errors="replace"))
        self._lines.put(None)
