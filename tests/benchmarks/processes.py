"""Processes of a benchmark: started, waited for, and what they and their children cost."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")
# A page that several processes share counts in each by its part.
_PROPORTIONAL = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


class DidNotStart(Exception):
    """A server ended or did not answer in time. The text holds the end of what it said."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a process and all below it have used: CPU time since their start, and resident memory now."""

    cpu_seconds: float
    memory_bytes: int


@contextlib.contextmanager
def running(
    command: Sequence[str], *, environment: Mapping[str, str], log: Path, answers_at: str = "", cwd: Path = ROOT
) -> Iterator[int]:
    """
    Run a server until the block ends, and give its process id once it answers at an address.

    :raises DidNotStart: if it does not
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=dict(environment), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        if answers_at:
            _wait_for_answer(process, answers_at, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            # It is the leader of a group of its own, so its workers go with it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def cost_of(pid: int) -> Cost:
    """Add up a process and its children. CPU time has that of children that ended; shared memory counts once."""
    ticks, kilobytes = 0, 0
    for each in _tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
            found = _PROPORTIONAL.search(Path(f"/proc/{each}/smaps_rollup").read_text())
            kilobytes += int(found[1]) if found else 0
    return Cost(cpu_seconds=ticks / _TICKS, memory_bytes=kilobytes * 1024)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(parent_of(int(entry.name)), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def _wait_for_answer(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    where = urlsplit(url)
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=5)
        try:
            connection.request("GET", where.path)
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            time.sleep(0.1)
        else:
            return
        finally:
            connection.close()
    raise DidNotStart(f"{url} does not answer.\n{log.read_text(errors='replace')[-2000:]}")
