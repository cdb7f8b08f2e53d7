"""Everything a chaos run runs on: a database, a broker, the simulator with its log, and the nursery of the workers."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rensei.simulator import server as simulator_server
from tests import servers
from tests.chaos.plan import WORKERS

ROOT = Path(__file__).parents[2]
WORKER_THREADS = 3


@dataclass(kw_only=True)
class Stack:
    """What is running, and how it is disturbed. A worker is known by its place; its successor has the same."""

    folder: Path
    database: servers.Postgres | None
    restart_broker: Callable[[], None]
    nursery: subprocess.Popen[str]
    kinds: list[str]
    plant: str
    workers: list[int] = field(default_factory=list)
    leaving: list[int] = field(default_factory=list)

    def start_workers(self, skew_hours: list[int]) -> None:
        self.workers = [self._fork(place, skew) for place, skew in enumerate(skew_hours)]

    def kill(self, place: int, *, skew_hours: int) -> int:
        """`kill -9` a worker, and start its successor. Gives the exit code of the dead."""
        self._ask(do="signal", pid=self.workers[place], number=signal.SIGKILL)
        code = self._ask(do="wait", pid=self.workers[place])
        self.workers[place] = self._fork(place, skew_hours)
        return code

    def terminate(self, place: int, *, skew_hours: int) -> None:
        """Ask a worker to stop, as at a deployment. It has its time, and its successor starts at once."""
        self._ask(do="signal", pid=self.workers[place], number=signal.SIGTERM)
        self.leaving.append(self.workers[place])
        self.workers[place] = self._fork(place, skew_hours)

    def freeze(self, pid: int) -> None:
        self._ask(do="signal", pid=pid, number=signal.SIGSTOP)

    def thaw(self, pid: int) -> None:
        self._ask(do="signal", pid=pid, number=signal.SIGCONT)

    def stop_workers(self) -> list[int]:
        """Ask all to stop, wait for them, and give their exit codes."""
        for pid in self.workers:
            self._ask(do="signal", pid=pid, number=signal.SIGTERM)
        pids, self.workers, self.leaving = [*self.workers, *self.leaving], [], []
        return [self._ask(do="wait", pid=pid) for pid in pids]

    def calls(self) -> list[dict[str, Any]]:
        """Read the simulator's log: what each request came to, or that it arrived."""
        requests: dict[int, dict[str, Any]] = {}
        for line in (self.folder / "simulator.jsonl").read_text().splitlines():
            entry = json.loads(line)
            requests[entry["sequence"]] = entry
        return list(requests.values())

    def _fork(self, place: int, skew_hours: int) -> int:
        return self._ask(do="fork", kind=self.kinds[place], skew_hours=skew_hours, plant=self.plant)

    def _ask(self, **order: Any) -> int:
        assert self.nursery.stdin is not None
        assert self.nursery.stdout is not None
        self.nursery.stdin.write(json.dumps(order) + "\n")
        self.nursery.stdin.flush()
        return int(self.nursery.stdout.readline())


@contextlib.contextmanager
def start(*, database: str, celery: bool, plant: str, copy_of: Path | None) -> Iterator[Stack]:
    """
    Start everything but the workers, in an empty folder, and point this process's settings at it.

    :param copy_of: the database to begin with, instead of an empty one: a file of SQLite, or the files of a PostgreSQL
    """
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="rensei-chaos-")))
        postgres = None
        if database == "postgres":
            postgres = running.enter_context(servers.run_postgres(copy_of=copy_of))
        elif copy_of is not None:
            shutil.copy(copy_of, folder / "rensei.sqlite3")
        broker, restart_broker = _start_broker(running) if celery else ("", lambda: None)
        simulator = simulator_server.start(log=folder / "simulator.jsonl", keep_bodies=False)
        running.callback(simulator.stop)
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "rensei.settings",
            "DATABASE_URL": postgres.url if postgres else f"sqlite:///{folder}/rensei.sqlite3",
            "CELERY_BROKER_URL": broker,
            "DB_POOL_SIZE": "12",
            "RENSEI_ANTHROPIC_BASE_URL": simulator.url,
            "RENSEI_DATA_DIR": str(folder),
            "RENSEI_LOG_LEVEL": "WARNING",
            "RENSEI_VAULT_KEYRING": str(folder / "keyring.json"),
            "RENSEI_WORKER_THREADS": str(WORKER_THREADS),
            "SECRET_KEY": secrets.token_urlsafe(50),
        }
        # With a broker, Celery's workers execute the runs, and one of ours does the periodic jobs.
        kinds = ["celery"] * (WORKERS - 1) + ["worker"] if celery else ["worker"] * WORKERS
        yield Stack(
            folder=folder,
            database=postgres,
            restart_broker=restart_broker,
            nursery=running.enter_context(_nursery(folder / "workers.log")),
            kinds=kinds,
            plant=plant,
        )


@contextlib.contextmanager
def _nursery(log: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.chaos.nursery"]
    with log.open("wb") as output:
        nursery = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True
        )
        try:
            yield nursery
        finally:
            assert nursery.stdin is not None
            nursery.stdin.close()
            nursery.wait(timeout=30)


def _start_broker(running: ExitStack) -> tuple[str, Callable[[], None]]:
    """Start Redis so that it can be started anew at the same address, having forgotten everything."""
    port = servers.free_port()
    current = ExitStack()
    running.callback(lambda: current.close())
    url = current.enter_context(servers.start_redis(port=port))

    def restart() -> None:
        current.close()
        current.enter_context(servers.start_redis(port=port))

    return url, restart
