"""Runs of agents as the worker and the gateway write them, without a sandbox."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rensei.core.clock import database_now
from rensei.core.ids import new_id
from rensei.core.models import WorkerHeartbeat
from rensei.core.usage import Usage
from rensei.dispatch import agents
from rensei.dispatch.admission.requests import messages_from
from rensei.dispatch.agents import AgentEnd, OutputFile
from rensei.dispatch.models import Attempt, Run, RunChunk, RunFile, RunInput, Sandbox
from rensei.dispatch.pools import agent_runner
from rensei.dispatch.settlement import settle
from rensei.dispatch.settlement.settle import RunEnd, SettlementPlan
from rensei.orgs.models import Org, User
from tests.factories import past_run

DOLLAR = 10**12


def offer_sandboxes() -> None:
    """Let a worker say that it starts sandboxes."""
    seen = {"seen_at": database_now(), "offers_sandboxes": True}
    WorkerHeartbeat.objects.update_or_create(worker="test", defaults=seen)


def definition(**fields: Any) -> dict[str, Any]:
    return agents.checked(
        {
            "program": ["python3", "agent.py", "two words"],
            "files": [{"path": "agent.py", "content": "print()"}],
            "env": {"STAGE": "secret-value"},
            "outputs": ["out/**"],
            **fields,
        }
    )


def begin(run: Run) -> Sandbox:
    """Put a queued run into a sandbox."""
    now = database_now()
    Run.objects.filter(id=run.id).update(state="RUNNING", epoch=1, started_at=now, lease_owner="test")
    run.refresh_from_db()
    return Sandbox.objects.create(
        org=run.org, run=run, epoch=1, pool="sandbox", provider_id="sandbox", token_digest=run.id, calls_left=500,
        created_at=now - timedelta(seconds=2),
    )  # fmt: skip


def call(run: Run, *, number: int, **fields: Any) -> Attempt:
    """Make a call of 100 tokens, of which 20 are output."""
    now = database_now()
    attempt = Attempt.objects.create(
        run=run, number=number, epoch=1, input_tokens_estimate=80, started_at=now - timedelta(seconds=1), **fields
    )
    usage = Usage(input_tokens=80, output_tokens=20)
    settle.write([SettlementPlan(run=run, now=now, attempt=attempt, usage=usage, request_id=f"req_{number}")])
    return attempt


def write(run: Run, *, text: str = "", log: str = "") -> None:
    """Store what the program has written."""
    for kind, words in (("delta", text), ("log", log)):
        if words:
            seq = RunChunk.objects.filter(run=run).count() + 1
            RunChunk.objects.create(run=run, seq=seq, kind=kind, data={"text": words})
            Run.objects.filter(id=run.id).update(chunk_count=seq)
    run.refresh_from_db()


def finish(run: Run, *, files: Sequence[str] = (), text: str = "", **end: Any) -> Run:
    """End the program, which has left these files."""
    made = [OutputFile(path=path, content=path.encode()) for path in files]
    left = AgentEnd(**{"exit_code": 0, "files": made, **end})
    now = database_now()
    settle.write([SettlementPlan(run=run, now=now, end=RunEnd(state=Run.State.SUCCEEDED, text=text, agent=left))])
    Sandbox.objects.filter(run=run).update(ended_at=now)
    run.refresh_from_db()
    return run


def past_agent(org: Org, person: User) -> Run:
    """An agent that has ended, as its rows say it."""
    now = database_now()
    file_id = new_id("file")
    path = "out/reports/a-file-with-a-rather-long-name-that-a-phone-breaks-into-lines.md"
    result = {"exitCode": 0, "files": [{"id": file_id, "path": path, "bytes": 5}], "leftOut": {"LINK": 2}}
    run = past_run(
        org,
        person,
        profile_name="deep",
        pool="sandbox",
        in_sandbox=True,
        is_agent=True,
        epoch=1,
        max_cost_picodollars=DOLLAR,
        output_text="Done: " + "the sea " * 200,
        agent_result=result,
        started_at=now,
    )
    body = {"system": None, "messages": messages_from(text="My task.", messages=None), "agent": definition()}
    RunInput.objects.create(run=run, body=body)
    RunFile.objects.create(id=file_id, run=run, path=path, content=b"Notes")
    write(run, log=f"Looking at the sea.\n{agent_runner.CUT}")
    box = {"epoch": 1, "pool": "sandbox", "provider_id": "sandbox", "calls_left": 1}
    Sandbox.objects.create(org=org, run=run, token_digest=run.id, created_at=now, ended_at=now, **box)
    error = {"code": "PROVIDER_OVERLOADED", "detail": "Busy.", "fix": "", "retryable": True}
    for number, fault in ((1, None), (2, error)):
        attempt = {"number": number, "epoch": 1, "state": "SETTLED", "input_tokens_estimate": 1, "error": fault}
        Attempt.objects.create(
            run=run, provider_request_id=f"req_{'0' * 24}", started_at=now, finished_at=now, **attempt
        )
    return run
