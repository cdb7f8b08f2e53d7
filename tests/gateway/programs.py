"""The programs of tests/gateway/clients, each run with an environment of its own."""

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from tests.architecture.modules import ROOT
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import MODEL, settled
from tests.gateway.wire import Wire
from tests.simulator.doc_tables import make_image

INSTALLED = ROOT / ".venv/clients"
PROGRAMS = Path(__file__).parent / "clients"
PATIENCE_SECONDS = 240
ANSWERED = f"answering as {MODEL}"
PICTURE = base64.b64encode(make_image(8, 8)).decode()
# No client reports to anyone but the gateway, or looks for a newer version of itself.
QUIET = {
    "AI_SDK_LOG_WARNINGS": "false",
    "ANONYMIZED_TELEMETRY": "False",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "LITELLM_TELEMETRY": "False",
    "NO_COLOR": "1",
    "OTEL_SDK_DISABLED": "true",
    # What is not for this machine finds no way out of it.
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
}


def run_program(name: str, *, home: Path, environment: str = "libraries", **variables: str) -> Any:
    """Run a program that prints a JSON document, and give that."""
    if name.endswith(".mjs"):
        # Node looks for packages beside the program.
        find_installed("node_modules")
        place = INSTALLED / name
        place.write_bytes((PROGRAMS / name).read_bytes())
        command = ["node", str(place)]
    else:
        command = [find_installed(f"{environment}/bin/python"), str(PROGRAMS / name)]
    return json.loads(run(command, home=home, PICTURE=PICTURE, **variables).splitlines()[-1])


class LineProgram:
    """A Python program that answers each line of JSON with one, in one process: some clients take long to import."""

    def __init__(self, name: str, *, home: Path) -> None:
        self._process = subprocess.Popen(
            [find_installed("libraries/bin/python"), str(PROGRAMS / name)],
            cwd=home,
            env=_environment(home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **given: str) -> Any:
        """Send a line, and read the last of what it prints. A program that has ended prints nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(given) + "\n")
        self._process.stdin.flush()
        return json.loads(next(line for line in self._process.stdout if line.startswith("{")))

    def stop(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(PATIENCE_SECONDS)


def run(command: list[str], *, home: Path, check: bool = True, **variables: str) -> str:
    """Run a command, and give what it printed. Without `check` it may fail, and what it says then is given as well."""
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        command,
        cwd=home,
        env=_environment(home) | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    return done.stdout + done.stderr


def _environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), **QUIET}


def claude_code(
    prompt: str, *, home: Path, url: str, token: str, model: str, check: bool = True, **variables: str
) -> str:
    """Let Claude Code answer a prompt, and give what it printed. Without `check` it may fail."""
    return run(
        [find_installed("node_modules/.bin/claude"), "-p", prompt],
        home=home,
        check=check,
        ANTHROPIC_BASE_URL=url,
        ANTHROPIC_AUTH_TOKEN=token,
        ANTHROPIC_MODEL=model,
        ANTHROPIC_DEFAULT_HAIKU_MODEL=model,
        **{"CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1", **variables},
    )


def assert_recorded(client_wire: Wire, api: APIClient, simulator: Any) -> None:
    """Each message that was sent is a run of its own, in the list, with the usage that the provider told."""
    settled()
    assert {passed.status for passed in client_wire.messages()} == {200}
    listed = api.get("/api/v1/runs?pageSize=200").json()["results"]
    assert {run["state"] for run in listed} == {"SUCCEEDED"}
    assert len(listed) == len(client_wire.messages())
    told = sorted(call["usage"]["output_tokens"] for call in simulator.requests() if call["path"] == "/v1/messages")
    assert sorted(run["usage"]["outputTokens"] for run in listed) == told
    assert all(float(run["cost"]["amountUsd"]) > 0 for run in listed)
    assert_explained(simulator)


def find_installed(path: str) -> str:
    """Find what `make clients` installs, or skip the test."""
    place = INSTALLED / path
    if not place.exists():
        pytest.skip("`make clients` installs it")
    return str(place)
