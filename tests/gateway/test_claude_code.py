"""Claude Code as the program of an agent: the real one in a real sandbox, which calls the real gateway."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from billing.models import CostEvent
from integrations.keys import services as integrations
from rensei.core.clock import database_now
from rensei.core.models import WorkerHeartbeat
from rensei.core.secret import Secret
from rensei.dispatch import agents, services
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution.sandboxes import Sandboxes
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.pools.accounts import DRIVERS
from rensei.dispatch.pools.agent_runner import CUT, LINE_BYTES_MAX, SHOWN_CHARACTERS, Said, Transcript
from rensei.orgs.access import Access
from tests.cloud_stand_in import WITH_CLAUDE_CODE, StandIn
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import MODEL
from tests.gateway.programs import find_installed
from tests.gateway.server import Server
from tests.gateway.test_agents import log_of

pytestmark = pytest.mark.django_db(transaction=True)

DOLLAR = 10**12
PLACE = "/workspace/a.txt"


def bracketed(name: str, given: dict[str, Any]) -> str:
    """Tell the simulator to call a tool with an input."""
    return f"[[{name} {json.dumps(given)}]]"


WRITES = bracketed("use Write", {"file_path": PLACE, "content": "made"})


@pytest.fixture
def dispatch(settings: Any, request: pytest.FixtureRequest, ada_access: Access) -> Callable[..., Run]:
    """Dispatch Claude Code with a task, on a worker that has it."""
    settings.RENSEI_CLAUDE_CODE = find_installed("node_modules/.bin/claude")
    running: Sandboxes = request.getfixturevalue("running")
    assert running.claude_code_refusal == ""
    WorkerHeartbeat.objects.update(offers_claude_code=True)

    def send(task: str, *, cost: int = 2 * DOLLAR, **agent: Any) -> Run:
        asked = DispatchRequest(
            profile_id="prof_deep",
            messages=messages_from(text=task, messages=None),
            pool="sandbox",
            max_tokens=2000,
            max_cost_picodollars=cost,
            agent=agents.checked({"program": agents.CLAUDE_CODE, **agent}),
        )
        return admit.dispatch(ada_access, asked)

    return send


@pytest.mark.outside
class TestClaudeCode:
    def test_edits_a_file(
        self, metered: Any, dispatch: Any, finish: Any, simulator: Any, ada: Any, api_as: Any
    ) -> None:
        task = bracketed("use Edit", {"file_path": PLACE, "old_string": "before", "new_string": "after"})
        files = [{"path": "a.txt", "content": "It was before."}]

        run = finish(dispatch(task, files=files, outputs=["a.txt"]))

        assert (run.state, run.error) == (Run.State.SUCCEEDED, None)
        assert run.output_text.startswith(f"This is the Anthropic simulator, answering as {MODEL}.")
        shown = api_as(ada).get(f"/api/v1/runs/{run.id}").json()
        (file,) = shown["agent"]["files"]
        assert (shown["agent"]["exitCode"], shown["agent"]["turns"]) == (0, 2)
        assert api_as(ada).get(f"/api/v1/runs/{run.id}/files/{file['id']}").content == b"It was after."
        assert "Edit {" in log_of(run)
        assert run.attempts.filter(state=Attempt.State.SETTLED).count() == run.attempt_count == 2
        charged = CostEvent.objects.filter(run_id=run.id)
        assert run.amount_picodollars == sum(line.amount_picodollars for line in charged) > 0
        assert_explained(simulator)

    def test_lets_a_subagent_work_with_the_same_model(
        self, byok: Any, dispatch: Any, finish: Any, simulator: Any
    ) -> None:
        inner = bracketed("use Bash", {"command": "env; cat /proc/1/environ", "description": "look"})
        given = {"description": "look", "prompt": inner, "subagent_type": "Explore", "run_in_background": False}
        # The brackets of the inner task would end the outer one.
        escaped = json.dumps(given).replace("[", r"\u005b").replace("]", r"\u005d")

        run = finish(dispatch(f"[[use Agent {escaped}]]"))

        assert (run.state, run.error) == (Run.State.SUCCEEDED, None)
        assert run.agent_result["turns"] == 2
        assert run.attempt_count == 4
        main, one, two, last = run.attempts.order_by("number")
        assert one.agent_id == two.agent_id != ""
        assert [each.agent_id for each in (main, last)] == ["", ""]
        assert {call["model"] for call in simulator.requests()} == {MODEL}
        assert "ANTHROPIC_BASE_URL=http://127.0.0.1:8080" in log_of(run)
        for secret in ("rsr_", "sk-ant-", "RENSEI_", "DATABASE"):
            assert secret not in log_of(run) + run.output_text
        assert_explained(simulator)

    def test_ends_after_its_turns(self, byok: Any, dispatch: Any, finish: Any) -> None:
        run = finish(dispatch(WRITES, maxTurns=1, outputs=["*"]))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "AGENT_FAILED")
        assert "Reached maximum number of turns (1)" in run.error["detail"]
        assert run.files.get().path == "a.txt"

    def test_makes_no_call_above_its_cap(self, metered: Any, dispatch: Any, finish: Any, simulator: Any) -> None:
        # Enough for its first call.
        cap = DOLLAR * 55 // 100

        run = finish(dispatch(WRITES, cost=cap, outputs=["*"]))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SPEND_CAP_EXCEEDED")
        assert 0 < run.amount_picodollars < cap
        assert run.files.get().path == "a.txt"
        assert_explained(simulator)

    def test_fails_with_the_words_of_an_error(self, byok: Any, dispatch: Any, finish: Any) -> None:
        run = finish(dispatch("[[fault:403]]"))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "AGENT_FAILED")
        assert "API Error: 403 Your API key does not have permission" in run.error["detail"]


@pytest.mark.parametrize("stand_in", ["e2b", "vercel"], indirect=True)
class TestInACloud:
    @pytest.fixture
    def in_cloud(
        self, stand_in: StandIn, server: Server, running: Sandboxes, settings: Any, ada_access: Access
    ) -> Callable[..., Run]:
        settings.PUBLIC_URL = "https://rensei.example.com"
        stand_in.hosts["rensei.example.com"] = server.url
        integrations.add_integration(
            ada_access, provider=stand_in.provider, api_key=Secret(stand_in.key), workspace_id=stand_in.workspace_id
        )
        config: dict[str, object] = {DRIVERS[stand_in.provider].image_setting: WITH_CLAUDE_CODE}
        services.create_pool(ada_access, name="with-claude", provider_id=stand_in.provider, config=config)

        def send(task: str, **agent: Any) -> Run:
            asked = DispatchRequest(
                profile_id="prof_deep",
                messages=messages_from(text=task, messages=None),
                pool="with-claude",
                max_tokens=2000,
                max_cost_picodollars=2 * DOLLAR,
                agent=agents.checked({"program": agents.CLAUDE_CODE, **agent}),
            )
            return admit.dispatch(ada_access, asked)

        return send

    @pytest.mark.outside
    def test_edits_a_file(self, metered: Any, in_cloud: Any, finish: Any, stand_in: StandIn, simulator: Any) -> None:
        stand_in.claude_code = Path(find_installed("node_modules/.bin/claude")).resolve()
        task = bracketed("use Edit", {"file_path": PLACE, "old_string": "before", "new_string": "after"})
        files = [{"path": "a.txt", "content": "It was before."}]

        run = finish(in_cloud(task, files=files, outputs=["a.txt"]))

        assert (run.state, run.error) == (Run.State.SUCCEEDED, None)
        assert bytes(run.files.get().content) == b"It was after."
        assert (run.agent_result["turns"], run.attempt_count) == (2, 2)
        assert {host for host, *_ in stand_in.passed} == {"rensei.example.com"}
        assert_explained(simulator)

    def test_says_that_the_image_does_not_have_it(
        self, byok: Any, in_cloud: Any, finish: Any, stand_in: StandIn
    ) -> None:
        stand_in.claude_code = None

        run = finish(in_cloud("Task"))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "AGENT_PROGRAM_UNAVAILABLE")
        assert "the image of the sandbox has no `claude`" in run.error["detail"]
        assert not run.attempts.exists()


class TestAWorker:
    BODY = {"profileId": "prof_deep", "input": "Hello.", "pool": "sandbox", "maxCostUsd": "1"}

    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            ("", "it is not installed on a worker, or not where RENSEI_CLAUDE_CODE says."),
            ("nowhere", "it is not installed on a worker, or not where RENSEI_CLAUDE_CODE says."),
            ("/usr/bin/true", "bubblewrap says: "),
        ],
    )
    def test_says_why_it_has_none(
        self, byok: Any, running: Sandboxes, settings: Any, ada: Any, api_as: Any, program: str, reason: str
    ) -> None:
        settings.RENSEI_CLAUDE_CODE = program
        running._in_loop(running._probe()).result()
        WorkerHeartbeat.objects.update(claude_code_refusal=running.claude_code_refusal)

        refused = api_as(ada).post("/api/v1/runs", {**self.BODY, "agent": {"program": "claude-code"}})

        assert reason in running.claude_code_refusal
        assert (refused.status_code, refused.json()["code"]) == (409, "AGENT_PROGRAM_UNAVAILABLE")
        assert reason in refused.json()["detail"]
        assert not Run.objects.exists()

    def test_must_have_it_each(self, byok: Any, running: Sandboxes, ada: Any, api_as: Any) -> None:
        others = {"seen_at": database_now(), "offers_claude_code": True}
        WorkerHeartbeat.objects.create(worker="b", offers_sandboxes=True, **others)
        WorkerHeartbeat.objects.create(worker="c", offers_sandboxes=False, **others)
        body = {**self.BODY, "agent": {"program": "claude-code", "maxTurns": 3}}

        refused = api_as(ada).post("/api/v1/runs", body)
        WorkerHeartbeat.objects.filter(worker="test").update(offers_claude_code=True)
        admitted = api_as(ada).post("/api/v1/runs", body)

        assert refused.json()["code"] == "AGENT_PROGRAM_UNAVAILABLE"
        assert admitted.status_code == 202
        Run.objects.update(state=Run.State.FAILED)

    def test_starts_nothing_after_it_was_removed(
        self, byok: Any, running: Sandboxes, finish: Any, settings: Any, ada: Any, api_as: Any
    ) -> None:
        WorkerHeartbeat.objects.update(offers_claude_code=True)
        api_as(ada).post("/api/v1/runs", {**self.BODY, "agent": {"program": "claude-code"}})
        settings.RENSEI_CLAUDE_CODE = "/nowhere/claude"

        run = finish(Run.objects.get())

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SANDBOX_NOT_CREATED")
        assert "Claude Code is no longer installed" in run.error["detail"]


class TestATranscript:
    @pytest.fixture
    def take(self, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str, Transcript]]:
        """Read a transcript in pieces of a few bytes, and give its text and its log."""

        def read(*events: Any, size: int = 7) -> tuple[str, str, Transcript]:
            written = b"".join(
                (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in events
            )
            said, log = Said("text", 10**6, end=""), Said("log", 10**6, end=CUT)
            transcript = Transcript(said, log)
            for place in range(0, len(written), size):
                transcript.take(written[place : place + size])
            said.flush()
            log.flush()
            lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            return *("".join(line.get(name, "") for line in lines) for name in ("text", "log")), transcript  # type: ignore[return-value]

        return read

    def test_has_the_text_of_the_main_agent(self, take: Any) -> None:
        def message(id_: str, parent: str | None = None, **block: Any) -> dict[str, Any]:
            content = {"id": id_, "model": MODEL, "content": [block]}
            return {"type": "assistant", "parent_tool_use_id": parent, "message": content}

        begins = {"type": "content_block_start", "content_block": {"type": "text"}}
        pieces = [{"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}} for text in "aé"]
        streamed = [{"type": "stream_event", "event": event} for event in (begins, *pieces)]
        given = [{"type": "tool_result", "content": [{"type": "text", "text": "x" * 3000}]}]

        text, log, transcript = take(
            *streamed,
            message("1", type="text", text="aé"),
            message("1", type="tool_use", name="Bash", input={"command": "ls"}),
            {"type": "user", "message": {"content": given}},
            message("2", parent="toolu_1", type="text", text="of a subagent"),
            *streamed,
            message("3", type="text", text="aé"),
            {"type": "result", "is_error": False, "result": "aé"},
        )

        assert text == "aé\n\naé"
        assert log.splitlines() == ['Bash {"command": "ls"}', "x" * SHOWN_CHARACTERS + "…", "of a subagent"]
        assert (transcript.turns, transcript.failure) == (2, "")

    def test_has_the_words_of_a_failure(self, take: Any) -> None:
        _, _, transcript = take({"type": "result", "is_error": True, "errors": ["It broke."]})

        assert transcript.failure == "It broke."

    def test_reads_over_what_is_none(self, take: Any) -> None:
        long = b'{"type": "user", "message": "' + b"x" * LINE_BYTES_MAX + b'"}'
        odd = [b"no json", b"[1]", {"type": "assistant"}, {"type": "result"}, b'"' + b"[" * 9000, long, b"after"]

        text, log, transcript = take(*odd, size=2**16)

        assert (text, transcript.turns) == ("", 0)
        assert log.startswith("no json\n[1]\n")
        assert log.endswith("after\n")
        assert len(log) < 8 * SHOWN_CHARACTERS
