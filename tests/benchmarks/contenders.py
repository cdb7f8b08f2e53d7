"""The servers that a benchmark compares, each in processes of its own and in front of the same stand-in upstream."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests import servers
from tests.benchmarks import answers, processes
from tests.benchmarks.processes import ROOT, DidNotStart

# Installed beside the project, and never a part of it: they are only measured.
INSTALLED = ROOT / "var" / "benchmarks"
LITELLM = "litellm[proxy]==1.106.2"
PORTKEY = "@portkey-ai/gateway@1.15.2"
LOOPBACK = "http://127.0.0.1"
INSTALL_SECONDS_MAX = 900
LITELLM_CONFIG = {
    "model_list": [
        {
            "model_name": "claude-sonnet-5-5",
            "litellm_params": {"model": "anthropic/claude-sonnet-5-5", "api_key": "os.environ/BENCH_UPSTREAM_KEY"},
        }
    ]
}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A running server: where it answers, what it wants to be sent, and the process whose cost is its own."""

    name: str
    url: str
    pid: int
    headers: dict[str, str] = field(default_factory=dict)


def upstream_key() -> str:
    """Make a key of the right shape, here and now. The stand-in takes any."""
    return "-".join(["sk-ant-api03", secrets.token_hex(24)])


def others_key() -> str:
    """Make a key by which the stand-in tells calls that are in no ledger of ours."""
    return "-".join([answers.OTHERS_KEY.decode(), secrets.token_hex(24)])


@contextlib.contextmanager
def start_upstream(folder: Path, *, seed: int, slow_event_seconds: float = 0.25) -> Iterator[Contender]:
    port = servers.free_port()
    command = [sys.executable, "-m", "tests.benchmarks.upstream", "--port", str(port), "--seed", str(seed)]
    command += ["--slow-event-seconds", str(slow_event_seconds)]
    url = f"{LOOPBACK}:{port}"
    with processes.running(
        command, environment=os.environ, log=folder / "upstream.log", answers_at=f"{url}/v1/models"
    ) as pid:
        yield Contender(name="direct", url=url, pid=pid, headers={"x-api-key": others_key()})


@contextlib.contextmanager
def start_rensei(folder: Path, *, environment: dict[str, str], token: str) -> Iterator[Contender]:
    """Start the web server as `manage.py start` does, with one worker process. Django is set up."""
    from rensei.core.asgi_limits import SERVER_OPTIONS

    port = servers.free_port()
    command = [
        *_granian(port, interface="asgi"),
        *SERVER_OPTIONS,
        "--workers-kill-timeout=3",
        "rensei.asgi:application",
    ]
    url = f"{LOOPBACK}:{port}"
    with processes.running(
        command, environment=environment, log=folder / "rensei.log", answers_at=f"{url}/healthz"
    ) as pid:
        yield Contender(name="rensei", url=url, pid=pid, headers={"x-api-key": token})


@contextlib.contextmanager
def start_worker(folder: Path, *, environment: dict[str, str]) -> Iterator[int]:
    """Start the process that executes queued runs, seals the ledger and does the periodic jobs."""
    command = [sys.executable, "manage.py", "worker"]
    with processes.running(command, environment=environment, log=folder / "worker.log") as pid:
        yield pid


@contextlib.contextmanager
def start_passthrough(folder: Path, *, upstream: str) -> Iterator[Contender]:
    port = servers.free_port()
    environment = {**os.environ, "BENCH_UPSTREAM": upstream, "BENCH_UPSTREAM_KEY": others_key()}
    command = [*_granian(port, interface="asginl"), "tests.benchmarks.passthrough:application"]
    url = f"{LOOPBACK}:{port}"
    with processes.running(
        command, environment=environment, log=folder / "passthrough.log", answers_at=f"{url}/v1/models"
    ) as pid:
        yield Contender(name="bare", url=url, pid=pid, headers={"x-api-key": "none"})


@contextlib.contextmanager
def start_litellm(folder: Path, *, upstream: str) -> Iterator[Contender]:
    """
    Start LiteLLM's proxy with one worker and no database.

    :raises DidNotStart: if it cannot be installed, or does not answer
    """
    program = INSTALLED / "litellm" / "bin" / "litellm"
    if not program.exists():
        _install(sys.executable, "-m", "venv", str(INSTALLED / "litellm"))
        _install(str(program.with_name("pip")), "install", "--quiet", LITELLM)
    config = folder / "litellm.json"
    config.write_text(json.dumps(LITELLM_CONFIG))
    port, token = servers.free_port(), "-".join(["sk", secrets.token_hex(24)])
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "ANTHROPIC_API_BASE": upstream,
        "BENCH_UPSTREAM_KEY": others_key(),
        "LITELLM_MASTER_KEY": token,
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--num_workers", "1", "--telemetry", "False"]
    url = f"{LOOPBACK}:{port}"
    with processes.running(
        command, environment=environment, log=folder / "litellm.log", answers_at=f"{url}/health/liveliness", cwd=folder
    ) as pid:
        yield Contender(name="litellm", url=url, pid=pid, headers={"x-api-key": token})


@contextlib.contextmanager
def start_portkey(folder: Path, *, upstream: str) -> Iterator[Contender]:
    """
    Start Portkey's open-source gateway, which asks for no credential of its own.

    :raises DidNotStart: if it cannot be installed, or does not answer
    """
    place = INSTALLED / "portkey"
    program = place / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not program.exists():
        place.mkdir(parents=True, exist_ok=True)
        _install("npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(place), PORTKEY)
    port = servers.free_port()
    url = f"{LOOPBACK}:{port}"
    headers = {
        "x-api-key": others_key(),
        "x-portkey-provider": "anthropic",
        "x-portkey-custom-host": f"{upstream}/v1",
    }
    with processes.running(
        ["node", str(program), f"--port={port}", "--headless"],
        environment={"PATH": os.environ["PATH"], "HOME": str(folder), "NODE_ENV": "production"},
        log=folder / "portkey.log",
        answers_at=f"{url}/",
        cwd=folder,
    ) as pid:
        yield Contender(name="portkey", url=url, pid=pid, headers=headers)


def _granian(port: int, *, interface: str) -> list[str]:
    """Write the command of a server. Only with the interface `asgi` does it tell its application that it starts."""
    options = [f"--interface={interface}", "--host=127.0.0.1", f"--port={port}", "--workers=1", "--log-level=warning"]
    return [sys.executable, "-m", "granian", *options, "--no-ws"]


def _install(*command: str) -> None:
    print(f"Installing {command[-1]}. This happens once.", flush=True)
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX)
    except (OSError, subprocess.SubprocessError) as fault:
        said = str(getattr(fault, "stderr", "") or fault).strip()
        raise DidNotStart(f"It could not be installed: {said[-300:]}") from fault
