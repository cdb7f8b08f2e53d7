"""Load on one server: by wrk where it is installed, which costs the least, else by the client of our own."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import processes
from tests.benchmarks.contenders import Contender
from tests.benchmarks.processes import ROOT

PATH = "/v1/messages"
_HEADERS = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
_WRK_SCRIPT = Path(__file__).with_name("post.lua")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What came of one load. Times are in milliseconds; `first` is when a stream's first event was there."""

    answered: int
    seconds: float
    failed: dict[str, int]
    p50_ms: float | None
    p99_ms: float | None
    first_p50_ms: float | None = None
    first_p99_ms: float | None = None
    server_cpu_seconds: float = 0.0
    database_cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.answered / self.seconds


@dataclass(frozen=True, kw_only=True)
class OpenStreams:
    """Streams that were open at once: how many, and the most memory that the server had meanwhile."""

    asked: int
    opened: int
    ended_well: int
    memory_bytes_before: int
    memory_bytes_max: int
    failed: dict[str, int] = field(default_factory=dict)


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def plain(contender: Contender, *, body: bytes, connections: int, seconds: float) -> Load:
    """Send plain requests, one after the other on each connection."""
    if not has_wrk():
        return _by_client(contender, body=body, connections=connections, seconds=seconds, streams=False)
    headers = {**_HEADERS, **contender.headers}
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        environment = {
            **os.environ,
            "BENCH_BODY": file.name,
            "BENCH_HEADERS": "\n".join(f"{name}: {value}" for name, value in headers.items()),
        }
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
        command += ["-s", str(_WRK_SCRIPT), f"{contender.url}{PATH}"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said = json.loads(result.stdout.strip().splitlines()[-1])
    failed = {name: said[name] for name in ("status", "failed") if said[name]}
    answered = said["answered"] - said["status"]
    return Load(answered=answered, seconds=said["seconds"], failed=failed, p50_ms=said["p50"], p99_ms=said["p99"])


def streams(contender: Contender, *, body: bytes, connections: int, seconds: float) -> Load:
    """Ask for streams, one after the other on each connection, and count the events of each."""
    return _by_client(contender, body=body, connections=connections, seconds=seconds, streams=True)


def by_own_client(contender: Contender, *, body: bytes, connections: int, seconds: float) -> Load:
    """Send plain requests without wrk."""
    return _by_client(contender, body=body, connections=connections, seconds=seconds, streams=False)


def open_streams(contender: Contender, *, body: bytes, count: int) -> OpenStreams:
    """Hold that many slow streams open at once, until each has ended by itself."""
    before = processes.cost_of(contender.pid).memory_bytes
    order = _order(contender, body=body, connections=count, seconds=60.0, streams=True, repeats=False)
    command = [sys.executable, "-m", "tests.benchmarks.client"]
    most = before
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(json.dumps(order) + "\n")
        client.stdin.close()
        while client.poll() is None:
            most = max(most, processes.cost_of(contender.pid).memory_bytes)
            time.sleep(0.5)
        opened, said = [json.loads(line) for line in client.stdout.read().strip().splitlines()]
    return OpenStreams(
        asked=count,
        opened=opened["open"],
        ended_well=said["answered"],
        memory_bytes_before=before,
        memory_bytes_max=most,
        failed=said["failed"],
    )


def _by_client(contender: Contender, *, body: bytes, connections: int, seconds: float, streams: bool) -> Load:
    order = _order(contender, body=body, connections=connections, seconds=seconds, streams=streams, repeats=True)
    result = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.client"],
        cwd=ROOT,
        input=json.dumps(order) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(result.stdout.strip().splitlines()[-1])
    whole, first = said["whole_ms"] or {}, said["first_ms"] or {}
    return Load(
        answered=said["in_time"],
        seconds=said["seconds"],
        failed=said["failed"],
        p50_ms=whole.get("p50"),
        p99_ms=whole.get("p99"),
        first_p50_ms=first.get("p50"),
        first_p99_ms=first.get("p99"),
    )


def _order(
    contender: Contender, *, body: bytes, connections: int, seconds: float, streams: bool, repeats: bool
) -> dict[str, Any]:
    return {
        "url": f"{contender.url}{PATH}",
        "headers": {**_HEADERS, **contender.headers},
        "body": base64.b64encode(body).decode(),
        "connections": connections,
        "seconds": seconds,
        "streams": streams,
        "repeats": repeats,
    }
