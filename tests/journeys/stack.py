"""Rensei as it runs for people: the web server and a worker in processes of their own, on the database of the tests."""

import contextlib
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from integrations.vault import keyring
from rensei.core.asgi_limits import SERVER_OPTIONS
from tests import servers
from tests.database import database_url
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
START_SECONDS_MAX = 120.0


@dataclass(kw_only=True)
class Program:
    """One of the processes, which can be stopped and started again."""

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=60)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Where the processes answer, and the folder that they share with the test."""

    url: str
    folder: Path
    web: Program
    worker: Program

    @property
    def keyring(self) -> Path:
        return self.folder / "keyring.json"

    def logs(self) -> str:
        """Read everything that the processes have written so far."""
        return "".join(log.read_text() for log in self.folder.glob("*.log"))

    def wait_until_it_answers(self) -> None:
        address = self.url.removeprefix("http://")
        try:
            wait_until(lambda: servers.answers(address), seconds=START_SECONDS_MAX, what="an answer", every=0.1)
        except AssertionError as error:
            error.add_note(self.logs()[-2000:])
            raise


@contextlib.contextmanager
def start(
    *,
    folder: Path,
    simulator_url: str,
    variables: Mapping[str, str] = types.MappingProxyType({}),
    under: Callable[[str], Sequence[str]] = lambda name: (),
    interface: str = "asginl",
) -> Iterator[Stack]:
    """
    Start both processes, wait until the server answers, and stop them at the end.

    `under` names the program that each of them is to run under, such as a tracer.
    """
    port = servers.free_port()
    url = f"http://{servers.LOOPBACK}:{port}"
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.journeys.settings",
        "DATABASE_URL": database_url(),
        "RENSEI_DATA_DIR": str(folder),
        "RENSEI_PUBLIC_URL": url,
        "RENSEI_VAULT_KEYRING": str(folder / "keyring.json"),
        "RENSEI_ANTHROPIC_BASE_URL": simulator_url,
        "RENSEI_SUPPORT_EMAIL": "operator@platform.test",
        "RENSEI_WORKER_THREADS": "2",
        **variables,
    }
    granian = (
        "-m",
        "granian",
        f"--interface={interface}",
        f"--host={servers.LOOPBACK}",
        f"--port={port}",
        *SERVER_OPTIONS,
        "--no-ws",
    )

    def program(name: str, *words: str) -> Program:
        command = [*under(name), sys.executable, *words]
        return Program(command=command, environment=environment, log=folder / f"{name}.log")

    stack = Stack(
        url=url,
        folder=folder,
        web=program("web", *granian, "--workers-kill-timeout=3", "rensei.asgi:application"),
        worker=program("worker", "manage.py", "worker"),
    )
    keyring.create(stack.keyring)
    try:
        stack.web.start()
        stack.worker.start()
        stack.wait_until_it_answers()
        yield stack
    finally:
        stack.worker.stop()
        stack.web.stop()
