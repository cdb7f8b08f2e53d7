"""Agents in sandboxes: programs that really run in bubblewrap, the real gateway, and the provider's stand-in."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from billing.models import CostEvent
from integrations.keys import leaks
from integrations.keys import services as integrations
from integrations.models import Integration
from rensei.core.clock import database_now
from rensei.core.errors import FieldError
from rensei.core.secret import Secret
from rensei.dispatch import agents, run_tokens, services, stored_bytes
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import agent_work, reaper
from rensei.dispatch.execution.agent_work import AgentWork
from rensei.dispatch.execution.sandboxes import Sandboxes
from rensei.dispatch.models import Attempt, Run, RunFile, Sandbox
from rensei.dispatch.pools import bubblewrap
from rensei.dispatch.queue import claims
from rensei.dispatch.settlement import outcomes
from rensei.dispatch.settlement.settle import RunEnd
from rensei.orgs.access import Access
from rensei.policies import services as policies
from tests.dispatch.reconcile import assert_explained
from tests.dispatch.test_crashes import let_leases_run_out
from tests.dying import die_after, die_at
from tests.gateway.line import exchange, message
from tests.gateway.server import Server
from tests.gateway.test_rates import counted
from tests.gateway.test_sandbox_crashes import programs
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

# A small agent: it asks the model as often as it is told, and prints each answer.
AGENT = """
import json, os, sys, urllib.error, urllib.request

def ask(text, model=os.environ["ANTHROPIC_MODEL"], max_tokens=100, more=()):
    body = {"model": model, "max_tokens": max_tokens, "messages": [{"role": "user", "content": text}]}
    headers = {"content-type": "application/json", "anthropic-version": "2023-06-01",
               "authorization": "Bearer " + os.environ["ANTHROPIC_AUTH_TOKEN"], **dict(more)}
    url = os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request) as answer:
            blocks = json.load(answer)["content"]
            return answer.status, "".join(block.get("text", "") for block in blocks)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)["error"].get("message")
"""
DOLLAR = 10**12


@pytest.fixture
def dispatch(ada_access: Access, running: Any) -> Callable[..., Run]:
    """Dispatch an agent whose program is the small one above, followed by these lines."""

    def send(lines: str, *, cost: int = DOLLAR, text: str = "Hello.", **agent: Any) -> Run:
        files = [{"path": "agent.py", "content": AGENT + lines}, *agent.pop("files", [])]
        spec = agents.checked({"program": ["python3", "agent.py"], "files": files, **agent})
        asked = messages_from(text=text, messages=None)
        request = DispatchRequest(
            profile_id="prof_deep", messages=asked, pool="sandbox", max_cost_picodollars=cost, agent=spec
        )
        return admit.dispatch(ada_access, request)

    return send


class TestAnAgent:
    def test_calls_as_often_as_it_needs(self, byok: Any, dispatch: Any, finish: Any, simulator: Any) -> None:
        lines = """
import pathlib
print(sys.stdin.read())
for number in range(3):
    print(*ask(f"[[reply 5 words]] {number}"))
print("working", file=sys.stderr)
pathlib.Path("out/deep").mkdir(parents=True)
pathlib.Path("out/deep/a.txt").write_text("made")
pathlib.Path("other.txt").write_text("not asked for")
"""
        run = finish(dispatch(lines, text="My task.", outputs=["out/**"]))

        assert (run.state, run.error) == (Run.State.SUCCEEDED, None)
        assert run.output_text.startswith("My task.\n200 ")
        assert run.output_text.count("200 ") == 3
        (file,) = run.files.all()
        assert (file.path, bytes(file.content)) == ("out/deep/a.txt", b"made")
        kept = [{"id": file.id, "path": "out/deep/a.txt", "bytes": 4}]
        assert run.agent_result == {"exitCode": 0, "turns": None, "files": kept, "leftOut": {}}
        assert run.attempts.count() == run.attempt_count == 3
        assert log_of(run) == "working\n"
        assert run.amount_picodollars == sum(line.amount_picodollars for line in CostEvent.objects.all())
        assert_explained(simulator)

    def test_names_its_subagents_as_far_as_they_are_names(
        self, byok: Any, dispatch: Any, finish: Any, ada: Any, api_as: Any
    ) -> None:
        lines = """
headers = [("a1", ""), ("b-2", "a1"), ("c" * 65, "a1"), ("d d", ""), ("", "a1")]
for agent, parent in headers:
    more = {"x-claude-code-agent-id": agent, "x-claude-code-parent-agent-id": parent}
    print(ask("Hello.", more={name: text for name, text in more.items() if text})[0])
"""
        run = finish(dispatch(lines))

        assert run.output_text == "200\n" * 5
        calls = api_as(ada).get(f"/api/v1/runs/{run.id}/calls").json()["results"]
        named = [(call["agentId"], call["parentAgentId"]) for call in reversed(calls)]
        assert named == [("a1", None), ("b-2", "a1"), (None, None), (None, None), (None, None)]

    @pytest.mark.parametrize("mode", ["metered", "shared"])
    def test_holds_what_it_may_cost(self, request: Any, mode: str, dispatch: Any, finish: Any, simulator: Any) -> None:
        request.getfixturevalue(mode)

        run = finish(dispatch("ask('One.'); ask('Two.')"))

        assert (run.state, run.attempt_count) == (Run.State.SUCCEEDED, 2)
        assert_explained(simulator)

    def test_makes_no_call_that_its_cap_does_not_cover(
        self, metered: Any, dispatch: Any, finish: Any, simulator: Any
    ) -> None:
        lines = """
open("made.txt", "w").write("before")
for number in range(50):
    status, said = ask("[[reply 300 words]]", max_tokens=400)
    print(status, said[:20])
    if status != 200:
        break
"""
        cap = DOLLAR // 20

        run = finish(dispatch(lines, cost=cap, outputs=["*.txt"]))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SPEND_CAP_EXCEEDED")
        statuses = [line[:3] for line in run.output_text.splitlines()]
        assert statuses[0] == "200"
        assert statuses[-1] == "402"
        assert 0 < run.amount_picodollars <= cap
        assert run.attempt_count == len(statuses) - 1
        assert run.files.get().path == "made.txt"
        assert_explained(simulator)

    def test_is_stopped_where_it_goes_on_after_its_cap(
        self, byok: Any, dispatch: Any, finish: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rensei.dispatch.execution.sandboxes.CAP_SECONDS", 0.0)
        lines = "print(ask('Hello.')[0], flush=True); import time; time.sleep(60)"

        run = finish(dispatch(lines, cost=1000))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SPEND_CAP_EXCEEDED")
        assert run.output_text == "402\n"
        assert run.agent_result["exitCode"] == 128 + signal.SIGTERM

    def test_makes_calls_that_come_together_one_after_another(
        self, byok: Any, dispatch: Any, finish: Any, simulator: Any
    ) -> None:
        lines = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(10) as pool:
    print([status for status, _ in pool.map(ask, "abcdefghij")])
"""
        run = finish(dispatch(lines))

        assert run.output_text == f"{[200] * 10}\n"
        assert run.attempts.filter(state=Attempt.State.SETTLED).count() == 10
        assert_explained(simulator)

    def test_calls_the_model_of_its_run_only(self, byok: Any, dispatch: Any, finish: Any) -> None:
        run = finish(dispatch("print(*ask('Hello.', model='claude-haiku-4-5-20251001'))"))

        assert run.output_text.startswith("403 The token of run_")
        assert not run.attempts.exists()

    def test_finds_no_credential_and_no_network(self, byok: Any, dispatch: Any, finish: Any, server: Server) -> None:
        lines = f"""
import pathlib, socket
print(dict(os.environ))
for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    print(path.read_bytes())
for path in pathlib.Path("/run/rensei").iterdir():
    if path.is_file(): print(path.name, path.read_bytes())
for address in [("127.0.0.1", {server.url.rpartition(":")[2]}), ("8.8.8.8", 53)]:
    try:
        socket.create_connection(address, 1); print("rea" + "ched", address)
    except OSError: pass
"""
        run = finish(dispatch(lines, env={"MINE": "yes"}))

        assert run.state == Run.State.SUCCEEDED
        assert "'MINE': 'yes'" in run.output_text
        for secret in ("rsr_", "sk-ant-", "reached", "RENSEI_", "DATABASE"):
            assert secret not in run.output_text


class TestWhatChangesMeanwhile:
    LINES = """
import time
statuses = []
for number in range(100):
    statuses.append(ask("Hello.")[0])
    if statuses[-1] != 200 or number and os.path.exists("stop"): break
    print("called", flush=True)
    time.sleep(0.05)
print(statuses[-1])
"""

    def test_refuses_further_calls_where_the_policy_denies_them(
        self, byok: Any, ada_access: Access, dispatch: Any, running: Sandboxes, simulator: Any
    ) -> None:
        run = dispatch(self.LINES)
        running.start_next()
        wait_until(lambda: run.attempts.filter(state=Attempt.State.SETTLED).exists(), what="its first call")

        policies.set_policy(ada_access, matrix={"*": {"byok": {"allowed": False}}})
        wait_until(lambda: not running._running, what="the end")

        run.refresh_from_db()
        assert (run.state, run.output_text.splitlines()[-1]) == (Run.State.SUCCEEDED, "403")
        assert_explained(simulator)

    def test_signs_further_calls_with_the_new_key(
        self, byok: Any, ada_access: Access, dispatch: Any, running: Sandboxes, simulator: Any, make_key: Any
    ) -> None:
        run = dispatch(self.LINES.replace("range(100)", "range(40)"))
        running.start_next()
        wait_until(lambda: run.attempts.filter(state=Attempt.State.SETTLED).exists(), what="its first call")

        key = Integration.objects.get(provider="claude")
        integrations.rotate_integration(ada_access, key, api_key=Secret(make_key()))
        wait_until(lambda: run.attempts.filter(credential_version=2, state="SETTLED").exists(), what="a later call")
        services.cancel_run(ada_access, run)
        wait_until(lambda: not running._running, what="the end")

        assert set(run.attempts.values_list("credential_version", flat=True)) == {1, 2}
        assert_explained(simulator)


class TestABadProgram:
    def test_fails_with_its_code_and_last_lines(self, byok: Any, dispatch: Any, finish: Any, simulator: Any) -> None:
        run = finish(dispatch("ask('Hello.'); open('a', 'w').write('kept'); sys.exit('No luck.')", outputs=["a"]))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "AGENT_FAILED")
        assert run.error["detail"] == "The program ended with exit code 1: No luck."
        assert (run.agent_result["exitCode"], run.files.get().path) == (1, "a")
        assert_explained(simulator)

    def test_fails_with_its_code_though_a_call_was_refused(self, byok: Any, dispatch: Any, finish: Any) -> None:
        run = finish(dispatch("ask('a'); ask('b', model='other'); sys.exit('No luck.')"))

        assert (run.error["code"], run.agent_result["exitCode"]) == ("AGENT_FAILED", 1)
        assert run.error["detail"].startswith(
            "The program ended with exit code 1, after its last request was refused (NOT_PERMITTED: The token of run_"
        )
        assert run.error["detail"].endswith("): No luck.")

    def test_is_stopped_during_a_call(
        self, metered: Any, dispatch: Any, running: Sandboxes, simulator: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(AgentWork, "seconds_max", 3.0)
        lines = "for each in ('[[slow 30]]', 'Another.'): ask(each)"
        run = dispatch(lines)
        running.start_next()
        wait_until(lambda: not running._running, what="the end of the run")

        run.refresh_from_db()
        assert (run.state, run.error["code"]) == (Run.State.FAILED, "RUN_TIMEOUT")
        # The gateway has stopped the call, so that nothing is corrected later.
        assert run.attempts.get().state == Attempt.State.SETTLED
        assert set(CostEvent.objects.values_list("kind", flat=True)) == {CostEvent.Kind.CHARGE}
        assert_explained(simulator)

    def test_leaves_a_call_to_the_end_of_its_time(
        self, metered: Any, dispatch: Any, running: Sandboxes, simulator: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(AgentWork, "seconds_max", 3.0)
        lines = """
import threading, time
threading.Thread(target=ask, args=["[[slow 30]]"], daemon=True).start()
time.sleep(0.5)
print("done", flush=True)
os._exit(0)
"""
        run = dispatch(lines)
        running.start_next()
        wait_until(lambda: not running._running, what="the end of the run")

        run.refresh_from_db()
        assert (run.state, run.error, run.output_text) == (Run.State.SUCCEEDED, None, "done\n")
        assert run.attempts.get().state == Attempt.State.SETTLED
        assert_explained(simulator)

    def test_is_not_found(self, byok: Any, dispatch: Any, finish: Any) -> None:
        run = finish(dispatch("", program=["nowhere", "x"]))

        assert run.error["code"] == "AGENT_FAILED"
        assert run.error["detail"] == "The program 'nowhere' could not be started: No such file or directory."

    def test_floods_its_outputs(self, byok: Any, dispatch: Any, finish: Any) -> None:
        lines = """
piece = "x" * 10**6
for _ in range(50):
    sys.stdout.write(piece); sys.stderr.write(piece)
"""
        run = finish(dispatch(lines))

        assert run.state == Run.State.SUCCEEDED
        assert 0 < len(run.output_text) < 10**6
        assert log_of(run).endswith("[The rest of the log was cut.]\n")
        assert len(log_of(run)) < 1.1 * agents.LOG_BYTES_MAX
        assert run.stored_bytes < 4 * agents.LOG_BYTES_MAX

    def test_writes_what_is_no_text(
        self, byok: Any, dispatch: Any, finish: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stored_bytes, "of_answer_at_most", lambda run: 1_000_000)
        lines = """
for piece in (b"\\0" * 200_000, b"\\xff" * 200_000, "ä€𝄞".encode() * 40_000, "€".encode()[:2]):
    for output in (sys.stdout, sys.stderr):
        output.buffer.write(piece)
open("a", "w").write("kept")
"""
        run = finish(dispatch(lines, outputs=["a"]))

        assert (run.state, run.files.get().path) == (Run.State.SUCCEEDED, "a")
        assert 999_990 < len(run.output_text.encode()) <= 1_000_000
        assert log_of(run).endswith("[The rest of the log was cut.]\n")

    def test_writes_half_a_character_at_its_end(self, byok: Any, dispatch: Any, finish: Any) -> None:
        run = finish(dispatch("sys.stdout.buffer.write('a€'.encode()[:-1])"))

        assert run.output_text == "a\ufffd"

    def test_forks_without_end(self, byok: Any, dispatch: Any, finish: Any) -> None:
        lines = """
open("a", "w").write("kept")
while True:
    try: os.fork()
    except OSError: break
os.kill(os.getppid(), 0); import time; time.sleep(30)
"""
        run = finish(dispatch(lines, timeoutSeconds=1, outputs=["a"]))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "RUN_TIMEOUT")
        assert run.files.get().path == "a"
        assert bubblewrap._folders("box") == []

    def test_fills_its_folders(self, byok: Any, dispatch: Any, finish: Any) -> None:
        lines = """
import errno
piece = b"x" * 2**20
for folder in (".", "/tmp", "/home/agent", "/dev/shm"):
    for number in range(1000):
        try: open(f"{folder}/{number}", "wb").write(piece)
        except OSError as full: print(number, errno.errorcode[full.errno]); break
open("again", "wb").write(piece)
"""
        room = replace(bubblewrap.FOR_AGENT, files_mib=dict.fromkeys(bubblewrap.AGENT_FILES_MIB, 4))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bubblewrap, "FOR_AGENT", room)
            run = finish(dispatch(lines))

        assert run.error["code"] == "AGENT_FAILED"
        assert "No space left on device" in run.error["detail"]
        assert [line.split()[1] for line in run.output_text.splitlines()] == ["ENOSPC"] * 4

    def test_uses_too_much_memory(self, byok: Any, dispatch: Any, finish: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bubblewrap, "FOR_AGENT", replace(bubblewrap.FOR_AGENT, memory_mib=64))
        lines = "piece = b'x' * 2**27; print('has it', flush=True); import time; time.sleep(30)"

        run = finish(dispatch(lines))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SANDBOX_LOST")
        assert "used more than 64 MiB" in run.error["detail"]

    def test_shares_too_much_memory(
        self, byok: Any, dispatch: Any, finish: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bubblewrap, "FOR_AGENT", replace(bubblewrap.FOR_AGENT, memory_mib=64))
        lines = "import mmap, time; piece = mmap.mmap(-1, 2**27); piece.write(b'x' * 2**27); time.sleep(30)"

        run = finish(dispatch(lines))

        assert run.error["code"] == "SANDBOX_LOST"
        assert "used more than 64 MiB" in run.error["detail"]

    def test_is_cancelled_though_it_ignores_that(
        self, byok: Any, ada_access: Access, dispatch: Any, running: Sandboxes, simulator: Any
    ) -> None:
        lines = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("a", "w").write("kept")
print("begins", flush=True)
ask("[[reply 400 words]] [[slow 0.05]]")
time.sleep(60)
"""
        run = dispatch(lines, outputs=["a"])
        running.start_next()
        wait_until(lambda: run.chunks.filter(kind="delta").exists(), what="the program")
        wait_until(run.attempts.exists, what="its call")

        services.cancel_run(ada_access, run)
        wait_until(lambda: not running._places, what="the end of the sandbox", seconds=5)
        wait_until(lambda: not running._running, what="the end of the run")

        run.refresh_from_db()
        assert (run.state, run.output_text) == (Run.State.CANCELLED, "begins\n")
        assert (run.agent_result["exitCode"], run.files.get().path) == (128 + signal.SIGKILL, "a")
        assert bubblewrap._folders("box") == []
        assert_explained(simulator)

    def test_dies_with_its_sandbox_during_a_call(
        self, metered: Any, dispatch: Any, running: Sandboxes, simulator: Any
    ) -> None:
        run = dispatch("ask('[[reply 60 words]] [[slow 0.02]]')")
        running.start_next()
        wait_until(run.attempts.exists, what="its call")

        os.kill(max(runners()), signal.SIGKILL)
        wait_until(lambda: not running._running, what="the end")

        run.refresh_from_db()
        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SANDBOX_LOST")
        assert run.attempts.get().state == Attempt.State.SETTLED
        assert_explained(simulator)

    def test_leaves_what_is_not_kept(self, byok: Any, dispatch: Any, finish: Any) -> None:
        lines = """
os.mkdir("out")
for number in range(10_000): open(f"out/{number:05}", "w").close()
os.symlink("/etc/passwd", "out/a-link"); os.symlink("/etc", "out/folder")
os.mkfifo("out/a-pipe")
open("out/a\\nb", "w").write("two lines")
open(b"out/\\xff", "w").write("no text")
open("out/a-large", "wb").truncate(2**25)
open("A", "w").write("first")
"""
        run = finish(dispatch(lines, outputs=["A", "out/**"]))

        assert run.state == Run.State.SUCCEEDED
        assert run.agent_result["leftOut"] == {
            "TOO_MANY": 10_000 + 1 - agents.OUTPUTS_MAX + 1,
            "LINK": 2,
            "NOT_A_FILE": 1,
            "NAME": 2,
        }
        assert run.files.count() == agents.OUTPUTS_MAX

    def test_forges_what_its_runner_reports(
        self, byok: Any, dispatch: Any, finish: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("../up", "/etc/passwd", "a\nb", "a//b", ""):
            line = json.dumps({"file": {"path": name, "data": "eA==", "more": False}})
            end = json.dumps({"end": {"exitCode": 0, "leftOut": {}}})
            monkeypatch.setattr(agent_work, "PROGRAM", f"print({line!r}); print({end!r})".encode())

            run = finish(dispatch(""))

            assert (run.error["code"], run.files.count()) == ("SANDBOX_LOST", 0)

    def test_prints_a_key_of_its_organization(
        self, byok: Any, dispatch: Any, finish: Any, ada_access: Access, make_token: Any
    ) -> None:
        token = make_token()
        lines = f"print({token!r}); print({token!r}, file=sys.stderr); open('a', 'w').write({token!r})"

        run = finish(dispatch(lines, outputs=["a"]))

        stored = [run.output_text, log_of(run), bytes(run.files.get().content).decode()]
        assert [token in text for text in stored] == [False] * 3
        assert all("[key removed" in text for text in stored)

    def test_names_two_files_the_same_but_for_a_key(
        self, byok: Any, dispatch: Any, finish: Any, ada_access: Access, make_token: Any
    ) -> None:
        token = make_token()
        blotted = leaks.find_or_blot(token, org=ada_access.org).blot(token)
        lines = f"for name in ({token!r}, {blotted!r}): open(name, 'w').write('x')"

        run = finish(dispatch(lines, outputs=["*"]))

        assert (run.state, run.agent_result["leftOut"]) == (Run.State.SUCCEEDED, {"NAME": 1})
        assert sorted(run.files.values_list("path", flat=True)) == sorted([blotted, "agent.py"])


def test_nothing_that_a_program_writes_is_taken_for_an_answer() -> None:
    """An open call is estimated without the text of its program."""
    attempt, end = Attempt(input_tokens_estimate=7), RunEnd(state=Run.State.FAILED)

    agent, other = (
        outcomes.sandbox_ended(run, attempt, end=end, text="x" * 400, now=database_now())[0].usage
        for run in (Run(is_agent=True), Run())
    )

    assert (agent.input_tokens, agent.output_tokens, other.output_tokens) == (7, 0, 100)


class TestItsToken:
    @pytest.fixture
    def issued(self, byok: Any, dispatch: Any) -> Iterator[tuple[Run, str]]:
        yield self.issue(dispatch)
        Run.objects.update(state=Run.State.FAILED)

    def issue(self, dispatch: Any) -> tuple[Run, str]:
        """Claim an agent, and issue the token of its sandbox."""
        dispatch("")
        claim = claims.claim_next_for_sandbox(owner="test")
        assert claim is not None
        found = run_tokens.issue(claim.run, provider_id="sandbox", request=None)
        assert found is not None
        return claim.run, found[1].reveal()

    def test_makes_only_so_many_calls(self, issued: Any, server: Server) -> None:
        run, token = issued
        Sandbox.objects.update(calls_left=1)

        first = call(server, token, message("Hello."))
        wait_until(run.attempts.filter(state=Attempt.State.SETTLED).exists, what="the settlement")
        second = call(server, token, message("Hello."))

        assert (first.status, second.status, second.code) == (200, 403, "NOT_PERMITTED")
        assert run.attempts.get().at_most_picodollars > 0

    def test_makes_no_call_above_the_share_of_the_platforms_keys(
        self, metered: Any, dispatch: Any, start_server: Any
    ) -> None:
        server = start_server(RENSEI_PLATFORM_TOKENS_ORG="1/hour")
        run, token = self.issue(dispatch)

        first = call(server, token, message("Hello."))
        wait_until(lambda: counted("tokens-platform") > 0, what="the tokens of the call")
        refused = call(server, token, message("Hello."))

        assert (first.status, refused.status, refused.code) == (200, 429, "RATE_LIMITED")
        assert run.attempts.count() == 1
        Run.objects.update(state=Run.State.FAILED)

    def test_names_no_other_model_in_a_request(self, issued: Any, server: Server) -> None:
        _, token = issued
        tool = {"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-4-8", "max_uses": 1}

        refused = call(server, token, message("Hello.", tools=[tool]))

        assert refused.status in {400, 403}
        assert not Attempt.objects.exists()

    def test_ends_with_its_run(self, issued: Any, server: Server) -> None:
        run, token = issued
        run_tokens.end(run.sandboxes.get())
        assert call(server, token, message("Hello.")).status == 403
        Run.objects.update(state=Run.State.FAILED)

        assert call(server, token, message("Hello.")).status in {401, 403}
        assert not Attempt.objects.exists()


class TestADispatch:
    BODY = {"profileId": "prof_deep", "input": "Hello.", "pool": "sandbox", "maxCostUsd": "1"}
    AGENT = {"program": ["true"]}

    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"maxCostUsd": None}, "/maxCostUsd"),
            ({"agent": {**AGENT, "git": {"url": "https://git.test"}}}, "/agent/git/url"),
            ({"agent": {"program": "claude"}}, "/agent/program"),
            ({"agent": {**AGENT, "maxTurns": 3}}, "/agent/maxTurns"),
            ({"agent": {**AGENT, "files": [{"path": "../up", "content": ""}]}}, "/agent/files/0/path"),
            ({"agent": {**AGENT, "env": {"ANTHROPIC_BASE_URL": "x"}}}, "/agent/env/ANTHROPIC_BASE_URL"),
            ({"system": "Be brief."}, "/system"),
        ],
    )
    def test_is_refused_where_something_is_wrong(
        self, byok: Any, running: Any, ada: Any, api_as: Any, changes: dict[str, Any], pointer: str
    ) -> None:
        answer = api_as(ada).post("/api/v1/runs", {**self.BODY, "agent": self.AGENT, **changes})

        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, pointer)
        assert not Run.objects.exists()

    def test_goes_to_a_sandbox_only(self, byok: Any, running: Any, ada: Any, api_as: Any) -> None:
        answer = api_as(ada).post("/api/v1/runs", {**self.BODY, "agent": self.AGENT, "pool": "local"})

        assert (answer.status_code, answer.json()["code"]) == (409, "NO_ELIGIBLE_POOL")
        assert "Agents run in sandboxes" in answer.json()["detail"]

    def test_is_refused_for_the_login_of_a_machine(self, byok: Any, running: Any, ada: Any, api_as: Any) -> None:
        byok.auth_modes = ["host-session"]
        byok.save()

        answer = api_as(ada).post("/api/v1/runs", {**self.BODY, "agent": self.AGENT})

        assert (answer.status_code, answer.json()["code"]) == (409, "AUTH_MODE_REQUIRES_LOCAL_CAPACITY")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"program": []},
            {"program": ["a\0b"]},
            {"program": ["a", 1]},
            {"files": [{"path": "a", "content": "x"}, {"path": "a/b", "content": "x"}]},
            {"files": [{"path": "a", "content": "x"}] * 2},
            {"files": [{"path": "a", "content": "!", "encoding": "base64"}]},
            {"files": [{"path": "a\nb", "content": "x"}]},
            {"files": [{"path": "a/" + "b" * 256, "content": "x"}]},
            {"files": [{"path": "a", "content": "x" * (agents.FILES_BYTES_MAX + 1)}]},
            {"files": [{"path": f"{number}", "content": ""} for number in range(agents.FILES_MAX + 1)]},
            {"env": {"A=B": "x"}},
            {"env": {"A": 1}},
            {"outputs": ["../*"]},
            {"outputs": "out"},
            {"timeoutSeconds": 0},
            {"timeoutSeconds": True},
            {"timeoutSeconds": agents.SECONDS_MAX + 1},
            {"program": "claude-code", "maxTurns": 0},
            {"program": "claude-code", "maxTurns": agents.CALLS_MAX + 1},
        ],
        # An id in full would be as long as the largest file, and each process of a run is told every id.
        ids=lambda wrong: str(wrong)[:80],
    )
    def test_has_a_definition_that_is_checked(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(FieldError):
            agents.checked({"program": ["true"], **wrong})

    def test_shows_its_calls_and_its_files(
        self, byok: Any, dispatch: Any, finish: Any, ada: Any, eve: Any, api_as: Any
    ) -> None:
        run = finish(dispatch("ask('Hello.'); open('ä b.html', 'w').write('<b>')", outputs=["*.html"]))
        api, at = api_as(ada), f"/api/v1/runs/{run.id}"

        shown, calls = api.get(at).json(), api.get(f"{at}/calls").json()["results"]
        file = api.get(f"{at}/files/{shown['agent']['files'][0]['id']}")

        assert shown["agent"]["exitCode"] == 0
        assert [(one["number"], one["amountUsd"]) for one in calls] == [(1, shown["cost"]["amountUsd"])]
        assert (file.status_code, file.content) == (200, b"<b>")
        assert file.headers["Content-Disposition"].startswith("attachment; filename*=utf-8''")
        for path in ("calls", f"files/{RunFile.objects.get().id}"):
            assert api_as(eve, slug="evil").get(f"{at}/{path}").status_code == 404


class TestAWorkerThatIsKilled:
    def test_leaves_no_sandbox_and_exact_costs(
        self, metered: Any, dispatch: Any, running: Sandboxes, simulator: Any
    ) -> None:
        lines = "ask('One.'); print('begins', flush=True); ask('[[reply 60 words]] [[slow 0.02]]')"
        run = dispatch(lines)

        die_at("mid-agent", plant=_plant_death, work=_carry_the_next)
        wait_until(lambda: not runners(), what="the end of the sandbox", seconds=5)
        let_leases_run_out()
        reaper.reap()
        wait_until(lambda: not run.attempts.filter(state=Attempt.State.INDETERMINATE).exists(), what="the settlement")

        run.refresh_from_db()
        assert (run.state, run.error["code"]) == (Run.State.FAILED, "RUN_INTERRUPTED")
        running._in_loop(running._sweep_once()).result()
        assert not Sandbox.objects.filter(ended_at=None).exists()
        assert bubblewrap._folders("box") == []
        assert_explained(simulator)


def _plant_death(point: str) -> None:
    claims.add_chunk = die_after(claims.add_chunk)


def _carry_the_next() -> None:
    ours = Sandboxes(owner="dying:sandboxes")
    ours.open()
    ours.start_next()
    wait_until(lambda: not ours._running, what="the end")


def log_of(run: Run) -> str:
    return "".join(
        data["text"] for data in run.chunks.filter(kind="log").order_by("seq").values_list("data", flat=True)
    )


def runners() -> list[int]:
    return programs("agent_runner.py")


def call(server: Server, token: str, body: Any) -> Any:
    return exchange(server, body, path="/v1/messages", method="POST", headers={"authorization": f"Bearer {token}"})
