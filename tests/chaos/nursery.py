"""
`python -m tests.chaos.nursery`: a process that has loaded everything, and forks a worker whenever it is asked.

So a worker that was killed has a successor within a fraction of a second. An order is a JSON object on one line, and
its answer a number: `fork` gives a process id, `signal` zero, `wait` the exit code as `subprocess` has it. Only this
process signals the workers, as it is the one that knows which process ids are still theirs. When standard input is
closed, it kills all of them.
"""

import json
import os
import signal
import sys
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

CELERY_THREADS = 3


def main() -> None:
    """Carry out the orders until there are no more."""
    import django

    django.setup()
    # Loaded before the first fork, so that no worker has to.
    import rensei.celery
    import rensei.urls  # Celery's checks of a starting worker read the addresses.
    import rensei.worker  # noqa: F401
    from integrations.providers.base import ADAPTERS

    for adapter in ADAPTERS.values():
        adapter.warm_up()
    children: set[int] = set()
    for line in sys.stdin:
        print(_carry_out(children, **json.loads(line)), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _carry_out(children: set[int], *, do: str, pid: int = 0, number: int = 0, **worker: Any) -> int:
    match do:
        case "fork":
            pid = os.fork()
            if pid == 0:
                _become_worker(**worker)
            children.add(pid)
            return pid
        case "signal":
            os.kill(pid, number)
            return 0
        case "wait":
            _, status = os.waitpid(pid, 0)
            children.discard(pid)
            return os.waitstatus_to_exitcode(status)
    raise ValueError(do)


def _become_worker(*, kind: str, skew_hours: int, plant: str) -> None:
    """Be the worker until it stops, and end this process."""
    code = 1
    try:
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)
        # Whatever a worker prints goes to the log, because standard output is for the answers.
        os.dup2(2, 1)
        if skew_hours:
            import time_machine

            # The clock that tells the date, as on a machine whose time is wrong; the monotonic one goes right.
            time_machine.travel(datetime.now(UTC) + timedelta(hours=skew_hours), tick=True).start()
        if plant:
            from tests.chaos.plants import PLANTS

            PLANTS[plant]()
        _work(kind)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - the log is what is left of this process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Not sys.exit: what the nursery would do at its end is not for a fork of it to do.
        os._exit(code)


def _work(kind: str) -> None:
    if kind == "celery":
        from rensei.celery import app

        options = ["--pool", "threads", "--concurrency", str(CELERY_THREADS), "--loglevel", "WARNING"]
        app.worker_main(["worker", *options, "--without-gossip", "--without-mingle"])
    else:
        from django.core.management import call_command

        call_command("worker")


if __name__ == "__main__":
    main()
