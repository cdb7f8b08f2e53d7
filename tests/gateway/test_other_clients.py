"""The TypeScript SDK and Claude Code through the gateway. `make clients` installs both and runs these tests."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rensei.dispatch.models import Run
from tests.architecture.rooms import ROOT
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import MODEL, settled
from tests.gateway.server import Server
from tests.gateway.wire import Wire

pytestmark = [pytest.mark.outside, pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

INSTALLED = ROOT / ".venv/clients"
PATIENCE_SECONDS = 240


@pytest.fixture(autouse=True)
def _clients() -> None:
    if not (INSTALLED / "node_modules").exists():
        pytest.skip("`make clients` installs them")


def run(command: list[str], *, home: Path, **variables: str) -> str:
    """Run a program with an environment of its own, and give what it printed."""
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        command,
        cwd=home,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class TestTheTypeScriptSdk:
    def test_does_everything_that_it_does_without_rensei(
        self, server: Server, token: str, byok: Any, tmp_path: Path, simulator: Any
    ) -> None:
        (INSTALLED / "typescript.mjs").write_bytes((Path(__file__).parent / "clients/typescript.mjs").read_bytes())

        printed = run(
            ["node", str(INSTALLED / "typescript.mjs")],
            home=tmp_path / "home",
            GATEWAY=server.url,
            TOKEN=token,
            MODEL=MODEL,
        )

        found = json.loads(printed)
        assert found["plain"]["model"] == MODEL
        assert "answering as claude-opus-5-5" in found["plain"]["text"]
        assert found["stream"] == {"pieces": 20, "words": 60}
        assert found["tools"]["name"] == "get_weather"
        assert found["counted"] == 0
        assert MODEL in found["models"]
        assert found["models"][-1] == "prof_deep"
        assert found["errors"] == {
            "rateLimit": "RateLimitError 429",
            "overloaded": "OverloadedError 529",
            "notFound": "NotFoundError 404",
            "nobody": "AuthenticationError 401",
        }
        settled()
        assert_explained(simulator)


class TestClaudeCode:
    # To newer models it sends system messages within the conversation.
    @pytest.mark.parametrize("model", ["claude-haiku-4-5-20251001", MODEL])
    def test_works_through_the_gateway(
        self, server: Server, token: str, byok: Any, tmp_path: Path, wire: Wire, model: str
    ) -> None:
        printed = run(
            [str(INSTALLED / "node_modules/.bin/claude"), "-p", "What is a vault?"],
            home=tmp_path / "home",
            ANTHROPIC_BASE_URL=server.url,
            ANTHROPIC_AUTH_TOKEN=token,
            ANTHROPIC_MODEL=model,
            ANTHROPIC_DEFAULT_HAIKU_MODEL=model,
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
            CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS="1",
        )

        settled()
        assert f"answering as {model}" in printed
        call = next(passed for passed in wire.messages() if model.encode() in passed.body and passed.status == 200)
        assert token not in str([(passed.headers, passed.body) for passed in wire.passed])
        assert "claude-cli" in call.headers["user-agent"]
        assert ("system" in {said["role"] for said in json.loads(call.body)["messages"]}) is (model == MODEL)
        answered = Run.objects.filter(state=Run.State.SUCCEEDED)
        assert answered.exists()
        assert all(run.metadata["sessionId"] for run in answered)
