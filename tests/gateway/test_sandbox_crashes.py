"""A worker is killed at each point of a run in a sandbox: no sandbox is left, and log and ledger agree."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from billing.ledger import roll_ups
from billing.models import CostEvent
from rensei.core.clock import database_now
from rensei.core.models import WorkerHeartbeat
from rensei.dispatch import agents, run_tokens
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import reaper, sandboxes
from rensei.dispatch.execution.sandboxes import Sandboxes
from rensei.dispatch.models import Attempt, Sandbox
from rensei.dispatch.pools import bubblewrap
from rensei.dispatch.queue import claims
from rensei.dispatch.settlement import settle
from rensei.orgs.access import Access
from tests.dispatch.reconcile import assert_explained
from tests.dispatch.test_crashes import let_leases_run_out
from tests.dying import die, die_after, die_at, die_before
from tests.gateway.server import Server
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

# Where the worker dies, and how the run ends: by another worker, or given up because the call may have been made.
POINTS = {
    "before-the-row": "SUCCEEDED",
    "after-the-row": "SUCCEEDED",
    "before-the-program": "SUCCEEDED",
    "mid-stream": "FAILED",
    "after-the-program": "FAILED",
    "before-the-end-commits": "FAILED",
    "after-the-end": "SUCCEEDED",
}


def plant_death(point: str) -> None:
    match point:
        case "before-the-row":
            run_tokens.issue = die_before(run_tokens.issue)
        case "after-the-row":
            run_tokens.issue = die_after(run_tokens.issue)
        case "before-the-program":
            bubblewrap.LocalBox.start = die_before(bubblewrap.LocalBox.start)
        case "mid-stream":
            claims.add_chunk = die_after(claims.add_chunk)
        case "after-the-program":
            Sandboxes._end_token = die_before(Sandboxes._end_token)
        case "before-the-end-commits":
            settle._tell = die_before(settle._tell)
        case "before-the-line-commits":
            roll_ups.add = _dying_with_capacity(roll_ups.add)
        case "after-the-end":
            settle.write = die_after(settle.write)
        case _:
            raise ValueError(point)


def _dying_with_capacity(add: Callable[[list[CostEvent]], None]) -> Callable[[list[CostEvent]], None]:
    def add_or_die(lines: list[CostEvent]) -> None:
        if any(line.kind == CostEvent.Kind.CAPACITY for line in lines):
            die()
        add(lines)

    return add_or_die


def carry_the_next() -> None:
    """Carry one run in a sandbox, as a worker does."""
    ours = Sandboxes(owner="dying:sandboxes")
    ours.open()
    ours._in_loop(ours._sweep_once()).result()
    ours.start_next()
    wait_until(lambda: not ours._running, what="the end")
    ours.close(seconds=1)


@pytest.mark.parametrize(("point", "state"), POINTS.items(), ids=POINTS)
class TestAWorkerThatIsKilled:
    def test_leaves_no_sandbox_and_nothing_unexplained(
        self,
        metered: Any,
        ada_access: Access,
        server: Server,
        settings: Any,
        simulator: Any,
        point: str,
        state: str,
    ) -> None:
        settings.PUBLIC_URL = server.url
        WorkerHeartbeat.objects.create(worker="test", seen_at=database_now(), offers_sandboxes=True)
        asked = messages_from(text="[[reply 60 words]] [[slow 0.01]]", messages=None)
        run = admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=asked, pool="sandbox"))

        die_at(point, plant=plant_death, work=carry_the_next)
        wait_until(lambda: not programs(), what="the end of the sandbox", seconds=5)
        let_leases_run_out()
        reaper.reap()
        carry_the_next()
        reaper.reap()

        run.refresh_from_db()
        assert run.state == state
        if state == "FAILED":
            assert run.error["code"] == "RUN_INTERRUPTED"
            # The gateway, which lives, settles the call, late where the run was given up before.
            wait_until(lambda: run.attempts.get().state == Attempt.State.SETTLED, what="the settlement")
        assert not Sandbox.objects.filter(ended_at=None).exists()
        assert bubblewrap._folders("box") == []
        assert_explained(simulator)


class TestAGatewayThatIsKilled:
    def test_ends_the_run_of_its_call(
        self,
        byok: Any,
        ada_access: Access,
        start_server: Any,
        settings: Any,
        simulator: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(sandboxes, "SETTLED_WITHIN_SECONDS", 0.2)
        gateway = start_server()
        settings.PUBLIC_URL = gateway.url
        WorkerHeartbeat.objects.create(worker="test", seen_at=database_now(), offers_sandboxes=True)
        asked = messages_from(text="[[reply 60 words]] [[slow 0.05]]", messages=None)
        run = admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=asked, pool="sandbox"))
        ours = Sandboxes(owner="test:sandboxes")
        ours.open()
        ours.start_next()
        wait_until(lambda: run.chunks.filter(kind="delta").exists(), what="the answer")

        gateway.kill()
        wait_until(lambda: not ours._running, what="the end", seconds=10)

        ours.close(seconds=1)
        run.refresh_from_db()
        assert (run.state, run.error["code"]) == ("FAILED", "RUN_INTERRUPTED")
        assert run.attempts.get().state == Attempt.State.INDETERMINATE
        assert bubblewrap._folders("box") == []
        wait_until(lambda: all(one["outcome"] for one in simulator.requests()), what="the end of the call")
        assert_explained(simulator)

    @pytest.mark.parametrize("streams", [True, False])
    def test_ends_an_agent_with_what_it_has_made(
        self,
        streams: bool,
        byok: Any,
        ada_access: Access,
        start_server: Any,
        settings: Any,
        simulator: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("CUT_SECONDS", "SETTLED_WITHIN_SECONDS"):
            monkeypatch.setattr(sandboxes, name, 0.2)
        gateway = start_server()
        settings.PUBLIC_URL = gateway.url
        WorkerHeartbeat.objects.create(worker="test", seen_at=database_now(), offers_sandboxes=True)
        program = """
import json, os, sys, time, urllib.request
open("a", "w").write("kept")
asked = {"model": os.environ["ANTHROPIC_MODEL"], "max_tokens": 100, "stream": sys.argv[1] == "streams",
         "messages": [{"role": "user", "content": sys.argv[2]}]}
request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", json.dumps(asked).encode(),
                                 {"content-type": "application/json", "anthropic-version": "2023-06-01"})
answer = urllib.request.urlopen(request)
print("It answers.", flush=True)
answer.read()
time.sleep(60)
"""
        arguments = ["streams", "[[reply 60 words]] [[slow 0.05]]"] if streams else ["", "[[slow 2]]"]
        agent = agents.checked({"program": ["python3", "-c", program, *arguments], "outputs": ["a"]})
        asked = messages_from(text="Hello.", messages=None)
        request = DispatchRequest(
            profile_id="prof_deep", messages=asked, pool="sandbox", max_cost_picodollars=10**12, agent=agent
        )
        run = admit.dispatch(ada_access, request)
        ours = Sandboxes(owner="test:sandboxes")
        ours.open()
        ours.start_next()
        wait_until(lambda: simulator.requests() and (run.chunks.exists() or not streams), what="its call")

        gateway.kill()
        wait_until(lambda: not ours._running, what="the end", seconds=10)

        ours.close(seconds=1)
        run.refresh_from_db()
        assert (run.state, run.error["code"]) == ("FAILED", "RUN_INTERRUPTED")
        assert (run.attempts.get().state, run.files.get().path) == (Attempt.State.INDETERMINATE, "a")
        wait_until(lambda: all(one["outcome"] for one in simulator.requests()), what="the end of the call")
        assert_explained(simulator)


class TestAProgramThatWritesManyLines:
    def test_lets_other_sandboxes_work_meanwhile(self) -> None:
        class Box:
            async def follow(self) -> Any:
                for _ in range(10 * sandboxes.LINES_BETWEEN_TURNS):
                    yield b"{}"

        class Work:
            def take(self, line: bytes) -> None:
                pass

        async def turns_of_another() -> int:
            reading = asyncio.ensure_future(sandboxes._read(Box(), Work()))  # type: ignore[arg-type]
            turns = 0
            while not reading.done():
                turns += 1
                await asyncio.sleep(0)
            return turns

        assert asyncio.run(turns_of_another()) >= 10


def programs(name: str = "runner.py") -> list[int]:
    """Find the programs of this installation's sandboxes. Other tests have theirs on the same machine."""
    ids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [
        pid
        for pid in ids
        if f"/{name}".encode() in read(pid, "cmdline") and bubblewrap._prefix("box").encode() in read(pid, "mountinfo")
    ]


def read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
