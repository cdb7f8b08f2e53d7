"""`python -m rensei.simulator`: run the stand-in for the Anthropic API on this machine."""

import argparse
import os
import signal
import threading
import time
from pathlib import Path

from granian import Granian
from granian.constants import Interfaces

_STOP_SECONDS_MAX = 5.0


def main() -> None:
    """Read the options, and serve until the process is stopped."""
    parser = argparse.ArgumentParser(prog="python -m rensei.simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8800, help="port to listen on (default: %(default)s)")
    parser.add_argument("--log", type=Path, help="append every request to this file, as JSON lines")
    parser.add_argument("--key-file", type=Path, help="accept only keys whose SHA-256 is a word of this file")
    parser.add_argument("--keep-bodies", action="store_true", help="keep the JSON bodies of requests in the log")
    parser.add_argument("--quiet", action="store_true", help="say nothing about the server itself")
    parser.add_argument("--instance", default="", help=argparse.SUPPRESS)
    parser.add_argument("--stop-with-stdin", action="store_true", help="stop when standard input is closed")
    options = parser.parse_args()

    # granian starts the application in a separate process, which reads these again.
    for name in ("log", "key_file"):
        if value := getattr(options, name):
            os.environ[f"SIMULATOR_{name.upper()}"] = str(value.resolve())
    os.environ["SIMULATOR_KEEP_BODIES"] = "1" if options.keep_bodies else "0"
    os.environ["SIMULATOR_INSTANCE"] = options.instance
    if options.stop_with_stdin:
        threading.Thread(target=_stop_with_stdin, daemon=True).start()
    Granian(
        "rensei.simulator.app:create_application",
        factory=True,
        address=options.host,
        port=options.port,
        interface=Interfaces.ASGINL,
        # One process, because the log, the cache and the counters are in its memory.
        workers=1,
        websockets=False,
        workers_kill_timeout=1,
        log_enabled=not options.quiet,
    ).serve()


def _stop_with_stdin() -> None:
    """Stop when the process that started this one has ended in any way."""
    # Not sys.stdin.read(): its lock would be held while granian forks, and the fork would wait for it forever.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOP_SECONDS_MAX)
    # A request that is deliberately kept open may prevent the server from stopping.
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
