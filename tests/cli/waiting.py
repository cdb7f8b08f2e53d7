"""Waiting for what other processes do, and ending them."""

import signal
import subprocess
import time
from collections.abc import Callable

PATIENCE_SECONDS = 60


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def end(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGINT) -> str:
    """Send a signal, as Ctrl-C does, and give all that the process has written."""
    process.send_signal(number)
    return process.communicate(timeout=PATIENCE_SECONDS)[0]
