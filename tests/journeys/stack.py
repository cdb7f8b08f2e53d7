"""Rensei as it runs for people: the web server and a worker in processes of their own, on the database of the tests."""

import contextlib
import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from integrations.vault import keyring
from tests import servers
from tests.dispatch.test_crashes import database_url

ROOT = Path(__file__).parents[2]
START_SECONDS_MAX = 120.0


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Where the processes answer, and the folder that they share with the test."""

    url: str
    folder: Path

    @property
    def keyring(self) -> Path:
        return self.folder / "keyring.json"

    def logs(self) -> str:
        """Read everything that the processes have written so far."""
        return "".join(log.read_text() for log in self.folder.glob("*.log"))


@contextlib.contextmanager
def start(*, folder: Path, simulator_url: str) -> Iterator[Stack]:
    """Start both processes, wait until the server answers, and stop them at the end."""
    port = servers.free_port()
    stack = Stack(url=f"http://{servers.LOOPBACK}:{port}", folder=folder)
    keyring.create(stack.keyring)
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.journeys.settings",
        "DATABASE_URL": database_url(),
        "RENSEI_DATA_DIR": str(folder),
        "RENSEI_PUBLIC_URL": stack.url,
        "RENSEI_VAULT_KEYRING": str(stack.keyring),
        "RENSEI_ANTHROPIC_BASE_URL": simulator_url,
        "RENSEI_SUPPORT_EMAIL": "operator@platform.test",
        "RENSEI_WORKER_THREADS": "2",
    }
    granian = ("-m", "granian", "--interface=asginl", f"--host={servers.LOOPBACK}", f"--port={port}", "--no-ws")
    with (
        _process(environment, folder / "web.log", *granian, "--workers-kill-timeout=3", "rensei.asgi:application"),
        _process(environment, folder / "worker.log", "manage.py", "worker"),
    ):
        _wait_until_it_answers(port, stack)
        yield stack


@contextlib.contextmanager
def _process(environment: dict[str, str], log: Path, *words: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_until_it_answers(port: int, stack: Stack) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(servers.LOOPBACK, port, timeout=10)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise TimeoutError(f"The server did not start:\n{stack.logs()[-2000:]}")
