"""Clients that take long to install, through the gateway: `make clients ALL=1`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import corpus
from tests.gateway.line import MODEL
from tests.gateway.programs import ANSWERED, assert_recorded, find_installed, run, run_program
from tests.gateway.wire import Wire

pytestmark = [pytest.mark.outside, pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]


class TestTheAgentSdk:
    def test_works_through_the_gateway(
        self,
        client_wire: Wire,
        token: str,
        byok: Any,
        tmp_path: Path,
        simulator: Any,
        api_as: Any,
        ada: Any,
    ) -> None:
        found = run_program(
            "agent_client.py",
            home=tmp_path / "home",
            environment="heavy",
            GATEWAY=client_wire.url,
            TOKEN=token,
            MODEL=MODEL,
        )

        assert ANSWERED in found["plain"]
        assert len(found["stream"].split()) == 60
        assert (found["tools"]["called"], ANSWERED in found["tools"]["text"]) == (1, True)
        assert "8x8" in found["image"]
        # It shows the text of a refusal, and no reason.
        assert ANSWERED in found["refusal"]
        assert found["cancel"] is True
        assert_recorded(client_wire, api_as(ada), simulator)
        corpus.record("agent_sdk", client_wire.messages())


class TestAider:
    # To a model that it does not know it sends a temperature, which only older ones take.
    def test_works_through_the_gateway(
        self,
        client_wire: Wire,
        token: str,
        byok: Any,
        tmp_path: Path,
        simulator: Any,
        api_as: Any,
        ada: Any,
    ) -> None:
        options = "--no-git --yes-always --no-check-update --no-show-model-warnings --analytics-disable --no-pretty"
        more = "--no-show-release-notes --no-auto-lint --no-detect-urls --map-tokens 0 --message Hello."
        model = "claude-haiku-4-5-20251001"

        printed = run(
            [find_installed("heavy/bin/aider"), "--model", f"anthropic/{model}", *f"{options} {more}".split()],
            home=tmp_path / "home",
            ANTHROPIC_API_KEY=token,
            ANTHROPIC_API_BASE=client_wire.url,
        )

        assert f"answering as {model}" in printed
        assert_recorded(client_wire, api_as(ada), simulator)
        corpus.record("aider", client_wire.messages())


class TestOpencode:
    def test_works_through_the_gateway(
        self,
        client_wire: Wire,
        token: str,
        byok: Any,
        tmp_path: Path,
        simulator: Any,
        api_as: Any,
        ada: Any,
    ) -> None:
        configuration = tmp_path / "opencode.json"
        options = {"baseURL": f"{client_wire.url}/v1", "apiKey": token}
        anthropic = {"options": options, "models": {MODEL: {"name": "Rensei"}}}
        configuration.write_text(
            json.dumps({"provider": {"anthropic": anthropic}, "autoupdate": False, "share": "disabled"})
        )

        printed = run(
            [find_installed("node-heavy/node_modules/.bin/opencode"), "run", "-m", f"anthropic/{MODEL}", "Hello."],
            home=tmp_path / "home",
            OPENCODE_CONFIG=str(configuration),
        )

        assert ANSWERED in printed
        assert_recorded(client_wire, api_as(ada), simulator)
        corpus.record("opencode", client_wire.messages())
