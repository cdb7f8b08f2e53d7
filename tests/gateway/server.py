"""The gateway as it runs for people: granian with the real application, on the database of the tests."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from integrations.vault import keyring
from rensei.core.asgi_limits import SERVER_OPTIONS
from tests import servers
from tests.database import database_url
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 60.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server, and the folder with its keys."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    def workers(self) -> list[int]:
        """Find the processes that serve: granian's own starts them and watches."""
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and _parent(int(entry.name)) == self.process.pid and _serves(int(entry.name))
        ]

    def memory(self) -> int:
        """Tell how much memory the processes that serve hold, in bytes."""
        page = os.sysconf("SC_PAGE_SIZE")
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in self.workers())

    def kill(self) -> None:
        """Kill every process of it at once, with no warning."""
        for pid in [self.process.pid, *self.workers()]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> int:
        """Tell it to stop, as a service manager does, and give its exit code."""
        self.process.terminate()
        return self.process.wait(timeout=STOP_SECONDS_MAX)

    def log(self) -> str:
        return (self.folder / f"{self.url.rpartition(':')[2]}.log").read_text()


@contextlib.contextmanager
def start(*, folder: Path, upstream: str, workers: int = 1, **variables: str) -> Iterator[Server]:
    """Start a server, wait until it answers, and stop it at the end."""
    port = servers.free_port()
    if not (folder / "keyring.json").exists():
        keyring.create(folder / "keyring.json")
    url = f"http://{servers.LOOPBACK}:{port}"
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.journeys.settings",
        "DATABASE_URL": database_url(),
        "RENSEI_DATA_DIR": str(folder),
        "RENSEI_PUBLIC_URL": url,
        "RENSEI_VAULT_KEYRING": str(folder / "keyring.json"),
        "RENSEI_ANTHROPIC_BASE_URL": upstream,
        "RENSEI_GATEWAY_RATE_TOKEN": "1000000/min",
        "RENSEI_GATEWAY_RATE_ORG": "1000000/min",
        **variables,
    }
    command = [sys.executable, "-m", "granian", "--interface=asgi", f"--host={servers.LOOPBACK}", f"--port={port}"]
    command += SERVER_OPTIONS
    command += [f"--workers={workers}", "--workers-kill-timeout=20", "--no-ws", "rensei.asgi:application"]
    with (folder / f"{port}.log").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = Server(url=url, folder=folder, process=process)
    try:
        _wait_until_it_answers(server)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_until_it_answers(server: Server) -> None:
    def answers() -> bool:
        assert server.process.poll() is None, "The server stopped while it was starting."
        return servers.answers(server.url.removeprefix("http://"))

    try:
        wait_until(answers, seconds=START_SECONDS_MAX, what="an answer", every=0.1)
    except AssertionError as error:
        error.add_note(server.log()[-2000:])
        raise


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _serves(pid: int) -> bool:
    """Tell a worker from Python's resource tracker."""
    try:
        return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
