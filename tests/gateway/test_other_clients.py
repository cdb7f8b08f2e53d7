"""The TypeScript SDK and Claude Code through the gateway. `make clients` installs both and runs these tests."""

import json
from pathlib import Path
from typing import Any

import pytest

from rensei.dispatch.models import Run
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import MODEL, settled
from tests.gateway.programs import claude_code, run_program
from tests.gateway.server import Server
from tests.gateway.wire import Wire

pytestmark = [pytest.mark.outside, pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]


class TestTheTypeScriptSdk:
    def test_does_everything_that_it_does_without_rensei(
        self, server: Server, token: str, byok: Any, tmp_path: Path, simulator: Any
    ) -> None:
        found = run_program("typescript.mjs", home=tmp_path / "home", GATEWAY=server.url, TOKEN=token, MODEL=MODEL)

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
        printed = claude_code("What is a vault?", home=tmp_path / "home", url=server.url, token=token, model=model)

        settled()
        assert f"answering as {model}" in printed
        call = next(passed for passed in wire.messages() if model.encode() in passed.body and passed.status == 200)
        assert token not in str([(passed.headers, passed.body) for passed in wire.passed])
        assert "claude-cli" in call.headers["user-agent"]
        assert ("system" in {said["role"] for said in json.loads(call.body)["messages"]}) is (model == MODEL)
        answered = Run.objects.filter(state=Run.State.SUCCEEDED)
        assert answered.exists()
        assert all(run.metadata["sessionId"] for run in answered)
