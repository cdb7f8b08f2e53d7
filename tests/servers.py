"""PostgreSQL and Redis for the tests: a private server each, on a free port of this machine, gone afterwards."""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from rensei.simulator.server import free_port
from tests.waiting import wait_until

LOOPBACK = "127.0.0.1"
# Debian keeps PostgreSQL's server programs off the PATH, in a folder for each version.
DEBIAN_POSTGRES = Path("/usr/lib/postgresql")


def find_postgres() -> Path | None:
    """Find the folder of PostgreSQL's server programs, the newest version first."""
    versions = sorted(DEBIAN_POSTGRES.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]), reverse=True)
    if versions:
        return versions[0].parent
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


def find_redis() -> Path | None:
    found = shutil.which("redis-server")
    return Path(found) if found else None


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A running server of ours."""

    files: Path
    url: str
    control: list[str]
    options: str
    log: Path

    def start(self) -> None:
        _run([*self.control, "start", "--wait", "--log", str(self.log), "--options", self.options])

    def stop(self) -> None:
        """End it as a machine that is shut down does, with everything in its files."""
        _run([*self.control, "stop", "--mode=fast"])

    def crash(self) -> None:
        """Stop every process of it at once, as if they had been killed. The next start recovers from its log."""
        _run([*self.control, "stop", "--mode=immediate"])


@contextlib.contextmanager
def start_postgres() -> Iterator[str]:
    """Start a new, empty PostgreSQL, fast because it may lose all in a crash, and give its `DATABASE_URL`."""
    with run_postgres(synchronous_commit="off") as server:
        yield server.url


@contextlib.contextmanager
def run_postgres(*, synchronous_commit: str = "on", copy_of: Path | None = None) -> Iterator[Postgres]:
    """
    Start a new PostgreSQL that forgets nothing it has committed when its processes die. Its database is empty.

    It would in a power cut: nothing is forced to the disk, as that takes the most time.

    :param copy_of: the files of one that was stopped, to begin with instead
    """
    programs = find_postgres()
    assert programs is not None, "PostgreSQL is not installed"
    folder = Path(tempfile.mkdtemp(prefix="rensei-postgres-"))
    as_postgres = _become_postgres(folder)
    data, port = folder / "data", free_port()
    settings = {
        "port": port,
        "listen_addresses": LOOPBACK,
        "unix_socket_directories": folder,
        "max_connections": 300,
        "fsync": "off",
        "synchronous_commit": synchronous_commit,
        "full_page_writes": "off",
    }
    server = Postgres(
        files=data,
        url=f"postgres://postgres@{LOOPBACK}:{port}/rensei",
        control=[*as_postgres, str(programs / "pg_ctl"), "--pgdata", str(data)],
        options=" ".join(f"-c {name}={value}" for name, value in settings.items()),
        log=folder / "log",
    )
    initdb = [str(programs / "initdb"), "--pgdata", str(data), "--username=postgres", "--auth=trust"]
    initdb += ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
    try:
        if copy_of is None:
            _run([*as_postgres, *initdb])
            server.start()
            _create_database(server.url)
        else:
            copy_files(copy_of, data)
            server.start()
        yield server
    finally:
        if (data / "postmaster.pid").exists():
            server.crash()
        shutil.rmtree(folder, ignore_errors=True)


def _create_database(url: str) -> None:
    server, _, name = url.rpartition("/")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of a PostgreSQL that is stopped, with their owner, whom it insists on."""
    _run(["cp", "--archive", "--reflink=auto", str(source), str(target)])


@dataclass(kw_only=True)
class Redis:
    """A server of ours that writes nothing to disk, so that it is empty whenever it starts."""

    port: int
    folder: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def start(self) -> None:
        program = find_redis()
        assert program is not None, "Redis is not installed"
        command = [str(program), "--port", str(self.port), "--bind", LOOPBACK, "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([*command, "--dir", self.folder], stdout=subprocess.DEVNULL)
        wait_for_port(self.port, self.process)

    def kill(self) -> None:
        """Do as `kill -9` does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=10)


@contextlib.contextmanager
def run_redis(*, port: int | None = None) -> Iterator[Redis]:
    """Start a new, empty Redis on this port or a free one."""
    with tempfile.TemporaryDirectory(prefix="rensei-redis-") as folder:
        server = Redis(port=port or free_port(), folder=folder)
        try:
            server.start()
            yield server
        finally:
            if server.process is not None:
                server.kill()


@contextlib.contextmanager
def start_redis(*, port: int | None = None) -> Iterator[str]:
    """Start a new, empty Redis on this port or a free one, and give its URL."""
    with run_redis(port=port) as server:
        yield server.url


def _become_postgres(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root, so root hands the folder and the programs to the user of Debian's package."""
    if os.geteuid() != 0:
        return []
    shutil.chown(folder, "postgres", "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


def _run(command: list[str]) -> None:
    # Output goes to a file: a server that stays in the background would keep a pipe open for ever.
    with tempfile.TemporaryFile("w+") as output:
        result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, cwd="/", check=False)
        if result.returncode != 0:
            output.seek(0)
            raise RuntimeError(f"{Path(command[-1]).name}: {' '.join(command)}\n{output.read()}")


def answers(address: str) -> bool:
    """Tell whether a web server of ours answers at `host:port`."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    def listens() -> bool:
        assert process.poll() is None, "the server stopped while it was starting"
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
            return True
        return False

    wait_until(listens, seconds=60, what=f"a server on port {port}")
