"""Ending other processes."""

import signal
import subprocess

PATIENCE_SECONDS = 60


def end(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGINT) -> str:
    """Send a signal, as Ctrl-C does, and give all that the process has written."""
    process.send_signal(number)
    return process.communicate(timeout=PATIENCE_SECONDS)[0]
