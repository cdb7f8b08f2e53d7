"""Real clients through the gateway. `make clients` installs them, and runs this and heavy_clients.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from billing.models import CostEvent
from rensei.dispatch.models import Run
from tests.dispatch.reconcile import assert_explained
from tests.gateway import corpus
from tests.gateway.line import MODEL, settled
from tests.gateway.programs import ANSWERED, assert_recorded, claude_code, run_program
from tests.gateway.wire import Wire

pytestmark = [pytest.mark.outside, pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]


class TestALibrary:
    @pytest.mark.parametrize(
        ("program", "environment", "refusal"),
        [
            ("anthropic_client.py", "libraries", "refusal"),
            ("langchain_client.py", "libraries", "refusal"),
            ("litellm_client.py", "libraries", "content_filter"),
            ("llm_client.py", "llm", "ClaudeRefusal"),
            ("pydantic_ai_client.py", "libraries", "content_filter"),
            ("vercel.mjs", "", "content-filter"),
        ],
        ids=["anthropic", "langchain", "litellm", "llm", "pydantic-ai", "vercel"],
    )
    def test_does_what_it_does_without_rensei(
        self,
        token: str,
        byok: Any,
        tmp_path: Path,
        simulator: Any,
        wire: Wire,
        client_wire: Wire,
        api_as: Any,
        ada: Any,
        program: str,
        environment: str,
        refusal: str,
    ) -> None:
        found = run_program(
            program,
            home=tmp_path / "home",
            environment=environment,
            GATEWAY=client_wire.url,
            ANTHROPIC_BASE_URL=client_wire.url,
            TOKEN=token,
            MODEL=MODEL,
        )

        assert ANSWERED in found["plain"]
        assert len(found["stream"].split()) == 60
        assert (found["tools"]["called"], ANSWERED in found["tools"]["text"]) == (1, True)
        assert "image/png" in found["image"]
        assert "8x8" in found["image"]
        # llm asks for no thinking by itself.
        assert "thinking" in found.get("thinking", ["thinking"])
        structured = found["structured"]
        assert (json.loads(structured) if isinstance(structured, str) else structured) == {"city": "example"}
        assert found["refusal"] == refusal
        assert found["cancel"] is True
        assert token not in str([(passed.headers, passed.body) for passed in wire.passed])
        assert_recorded(client_wire, api_as(ada), simulator)
        corpus.record(Path(program).stem, client_wire.messages())


class TestAToolRunner:
    @pytest.mark.parametrize("program", ["anthropic_client.py", "typescript.mjs"])
    def test_goes_on_without_a_thread_where_the_platform_signs(
        self, client_wire: Wire, token: str, metered: Any, tmp_path: Path, program: str
    ) -> None:
        found = run_program(program, home=tmp_path / "home", GATEWAY=client_wire.url, TOKEN=token, MODEL=MODEL)

        settled()
        refused = [passed for passed in client_wire.messages() if b"thread_unsupported_request" in passed.answer]
        assert found.get("runner", found["tools"])["called"] == 1
        assert len(refused) == 1
        billed = CostEvent.objects.filter(billed=True, amount_picodollars__gt=0)
        assert billed.count() == Run.objects.filter(state=Run.State.SUCCEEDED).count() > 0


class TestTheTypeScriptSdk:
    def test_does_everything_that_it_does_without_rensei(
        self, client_wire: Wire, token: str, byok: Any, tmp_path: Path, simulator: Any
    ) -> None:
        found = run_program("typescript.mjs", home=tmp_path / "home", GATEWAY=client_wire.url, TOKEN=token, MODEL=MODEL)

        assert found["plain"]["model"] == MODEL
        assert ANSWERED in found["plain"]["text"]
        assert found["stream"] == {"pieces": 20, "words": 60}
        assert found["tools"]["name"] == "get_weather"
        assert found["runner"] == {"called": 1, "stop": "end_turn"}
        assert "8x8" in found["image"]
        assert "thinking" in found["thinking"]
        assert (found["structured"], found["refusal"]) == ({"city": "example"}, "refusal")
        assert found["cancel"] is True
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
        corpus.record("typescript", [passed for passed in client_wire.messages() if passed.status == 200])


class TestClaudeCode:
    # To newer models it sends system messages within the conversation.
    @pytest.mark.parametrize("model", ["claude-haiku-4-5-20251001", MODEL])
    @pytest.mark.parametrize("betas", ["none", "experimental"])
    def test_works_through_the_gateway(
        self,
        client_wire: Wire,
        token: str,
        byok: Any,
        tmp_path: Path,
        wire: Wire,
        api_as: Any,
        ada: Any,
        simulator: Any,
        model: str,
        betas: str,
    ) -> None:
        without = {"CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1" if betas == "none" else ""}

        printed = claude_code(
            "What is a vault?", home=tmp_path / "home", url=client_wire.url, token=token, model=model, **without
        )

        assert f"answering as {model}" in printed
        call = next(passed for passed in wire.messages() if model.encode() in passed.body and passed.status == 200)
        assert token not in str([(passed.headers, passed.body) for passed in wire.passed])
        assert "claude-cli" in call.headers["user-agent"]
        assert ("system" in {said["role"] for said in json.loads(call.body)["messages"]}) is (model == MODEL)
        assert_recorded(client_wire, api_as(ada), simulator)
        assert all(run.metadata["sessionId"] for run in Run.objects.all())
        corpus.record(f"claude_code_{betas}_{model.split('-')[1]}", client_wire.messages())
