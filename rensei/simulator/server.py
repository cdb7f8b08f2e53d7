"""Start the simulator in a separate process, for tests and scripts, and read its log."""

import contextlib
import http.client
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START_SECONDS_MAX = 20.0
_STOP_SECONDS_MAX = 5.0
_PORTS = range(20_000, 32_768)
_RANDOM = random.SystemRandom()


class SimulatorDidNotStart(Exception):
    """The process ended or did not answer in time."""


@dataclass(kw_only=True)
class RunningSimulator:
    url: str
    process: subprocess.Popen[bytes]

    def requests(self, *, since: int = 0) -> list[dict[str, Any]]:
        """Read the log: every request with a higher sequence number, oldest first."""
        requests: list[dict[str, Any]] = self._call("GET", f"/__simulator/requests?since={since}")["requests"]
        return requests

    def instance(self) -> str:
        """Read the id of the simulator at this address."""
        instance: str = self._call("GET", "/__simulator/health")["instance"]
        return instance

    def last_sequence(self) -> int:
        """Return the last sequence number of the log, so that a test can read what follows."""
        requests = self.requests()
        return requests[-1]["sequence"] if requests else 0

    def invalid_requests(self) -> list[dict[str, Any]]:
        """Return the requests that were refused as invalid, not because a key or a prompt requested it."""
        return [request for request in self.requests() if request["status"] == 400 and not request["error_on_purpose"]]

    def reset(self) -> None:
        """Clear the log, the prompt cache and the counts of faults."""
        self._call("DELETE", "/__simulator/requests")

    def trust(
        self, *, issuer: str, rules: list[dict[str, Any]], keys: list[dict[str, str]] | None = None, cached: float = 60
    ) -> None:
        """Register an issuer with its federation rules. Without `keys`, they are fetched from the issuer."""
        document = {"issuer": issuer, "rules": rules, "keys": keys, "cachedSeconds": cached}
        self._call("PUT", "/__simulator/federation", document)

    def exchanges(self) -> list[dict[str, Any]]:
        """Read the history of exchanges, with the reason of each that was denied."""
        history: list[dict[str, Any]] = self._call("GET", "/__simulator/federation")["history"]
        return history

    def revoke_tokens(self) -> None:
        """End all access tokens that were issued, before their time."""
        self._call("DELETE", "/__simulator/federation/tokens")

    def stop(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.terminate()
        try:
            self.process.wait(timeout=_STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            # A request that is deliberately kept open may prevent the server from stopping.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _call(self, method: str, path: str, document: Any = None) -> Any:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=10)
        try:
            connection.request(method, path, body=json.dumps(document) if document is not None else None)
            return json.load(connection.getresponse())
        finally:
            connection.close()


def start(
    *, port: int = 0, log: Path | None = None, key_file: Path | None = None, keep_bodies: bool = True
) -> RunningSimulator:
    """
    Start a simulator on loopback and wait until it answers. It ends with this process in every case.

    :param port: 0 for any free one
    :raises SimulatorDidNotStart: if it does not answer
    """
    port = port or free_port()
    instance = secrets.token_hex(8)
    command = [sys.executable, "-m", "rensei.simulator", "--port", str(port), "--instance", instance]
    command += ["--stop-with-stdin", "--quiet"]
    command += ["--log", str(log)] if log else []
    command += ["--key-file", str(key_file)] if key_file else []
    command += ["--keep-bodies"] if keep_bodies else []
    project = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(  # noqa: S603 — all words are ours
        command, stdin=subprocess.PIPE, cwd=project, start_new_session=True
    )
    simulator = RunningSimulator(url=f"http://127.0.0.1:{port}", process=process)
    _wait_until_it_answers(simulator, instance=instance)
    return simulator


def _wait_until_it_answers(simulator: RunningSimulator, *, instance: str) -> None:
    deadline = time.monotonic() + _START_SECONDS_MAX
    while time.monotonic() < deadline and simulator.process.poll() is None:
        try:
            if simulator.instance() == instance:
                return
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
    simulator.stop()
    raise SimulatorDidNotStart(f"Nothing of ours answers at {simulator.url}.")


def free_port() -> int:
    """
    Find a port of loopback on which nothing listens, for a server that is started afterwards.

    The kernel gives the ports of `ip_local_port_range` (from 32768 on, proc(5)) to connections: one of those may be
    taken before the server has bound it. The choice is the system's, as two processes may share a seed.
    """
    for port in _RANDOM.sample(_PORTS, k=100):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                return port
    raise OSError("No port of loopback is free.")
