"""All that organizations can do to others at the same time, and what one of the others sees of it at the gateway."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from billing.models import CostEvent, UsageDaily
from integrations.keys import services as integrations
from profiles import services as profiles
from rensei.core.clock import database_now
from rensei.core.secret import Secret
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.orgs import services as orgs
from rensei.orgs.access import Access, for_member
from rensei.orgs.models import Org
from rensei.tokens.services import create_token
from tests.attacks import IS_WHOLE, sized
from tests.gateway.line import MODEL, message
from tests.journeys import stack as stacks
from tests.journeys.stack import ROOT, Stack
from tests.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.attack]

# Limits are those of a new installation, so no organization can do all of it alone. The attackers run in a process of
# their own, which tells how much CPU it used. Where server, worker, provider, attackers and database share two cores, a
# call waits for a core like any other work.
ATTACKERS, STREAMS, SLOW_RUNS = sized(2, 15), sized(20, 1000), sized(4, 40)
CALLS, CALLS_PER_SECOND = sized(40, 500), 25
SLOW = "[[slow 1]] [[reply 2000 words]]"
KINDS = ("stream", "test", "gateway JSON", "REST JSON", "anonymous JSON")


@pytest.fixture
def stack(transactional_db: None, catalog: None, tmp_path: Path, simulator: Any, settings: Any) -> Iterator[Stack]:
    threads = str(SLOW_RUNS + 8)
    folder = tmp_path / "stack"
    folder.mkdir()
    variables = {"RENSEI_WORKER_THREADS": threads, "RENSEI_WORKER_THREADS_PER_ORG": threads}
    with stacks.start(folder=folder, simulator_url=simulator.url, variables=variables, interface="asgi") as running:
        settings.RENSEI_VAULT_KEYRING = running.keyring
        yield running


@pytest.fixture
def open_org(make_user: Any, make_key: Any, stack: Stack) -> Callable[[str], tuple[Access, str]]:
    """Make an organization with a key, a profile and a token."""

    def make(name: str) -> tuple[Access, str]:
        owner = make_user(f"{name}@{name}.test")
        orgs.create_org(name=name, slug=name, owner=owner)
        access = for_member(user=owner, slug=name)
        assert access is not None
        integrations.add_integration(access, provider="claude", api_key=Secret(make_key()), name="Main")
        profiles.create_profile(
            access, name="deep", provider="claude", model_id=MODEL, auth_modes=["byok"], is_default=True
        )
        _, secret = create_token(access, name="program")
        return access, secret.reveal()

    return make


def idle_run(org: Org) -> Run:
    """A run that goes on, and tells nothing by itself."""
    now = database_now()
    later = now + timedelta(hours=1)
    return Run.objects.create(
        org=org, provider="claude", model_id="m", served_model_id="m", auth_mode="byok", payer="organization",
        max_tokens=1, created_at=now, deadline_at=later, state=Run.State.RUNNING, lease_until=later,
    )  # fmt: skip


def start_slow_runs(access: Access) -> None:
    for _ in range(SLOW_RUNS):
        admit.dispatch(access, DispatchRequest(messages=messages_from(text=SLOW, messages=None)))


def slow_runs_under_way(access: Access) -> int:
    return Run.objects.filter(org=access.org, state=Run.State.RUNNING, attempt_count=1).count()


def ledger_of(org: Org) -> tuple[int, int, int]:
    """Count an organization's ledger lines, and add up their output tokens and amounts."""
    lines = CostEvent.objects.filter(org_id=org.id).values_list("output_tokens", "amount_picodollars")
    return len(lines), sum(tokens for tokens, _ in lines), sum(int(amount or 0) for _, amount in lines)


def roll_ups_of(org: Org) -> tuple[int, int, int]:
    rows = UsageDaily.objects.filter(org=org).values_list("calls", "output_tokens", "amount_picodollars")
    return tuple(sum(int(each) for each in column) for column in zip(*rows, strict=True))  # type: ignore[return-value]


@contextmanager
def attack(stack: Stack, attackers: list[dict[str, Any]], kinds: Sequence[str] = KINDS) -> Iterator[dict[str, Any]]:
    """Attack while the block runs. What was answered is there after it."""
    told: dict[str, Any] = {}
    command = [sys.executable, "-m", "tests.operations.attackers"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"url": stack.url, "orgs": attackers, "kinds": kinds}) + "\n")
        process.stdin.flush()
        told |= json.loads(process.stdout.readline())
        yield told
        process.stdin.close()
        told |= json.loads(process.stdout.readline())


def call_steadily(stack: Stack, token: str, *, calls: int) -> list[float]:
    """
    Make calls at the gateway at fixed times, and list how long after its time each was answered.

    A call that has to wait for the one before has waited, and that counts.
    """
    taken = []
    connection = http.client.HTTPConnection(urlsplit(stack.url).netloc, timeout=60)
    headers = {"x-api-key": token, "content-type": "application/json", "anthropic-version": "2023-06-01"}
    body = json.dumps(message()).encode()
    began = time.monotonic()
    for number in range(calls):
        due = began + number / CALLS_PER_SECOND
        time.sleep(max(0.0, due - time.monotonic()))
        connection.request("POST", "/v1/messages", body, headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        taken.append(time.monotonic() - due)
    connection.close()
    return sorted(taken)


def percentile(taken: list[float], share: int) -> float:
    return taken[len(taken) * share // 100]


def figures_of(taken: list[float]) -> dict[str, float]:
    return {f"p{share}Ms": round(1000 * percentile(taken, share), 1) for share in (50, 90, 99)}


def cpu_seconds(stack: Stack) -> dict[str, float]:
    """Tell how much CPU the server and the worker have used, with the processes that they started, and the time."""
    found = {"time": time.monotonic()}
    for name, program in (("web", stack.web), ("worker", stack.worker)):
        assert program.process is not None
        found[name] = sum(_cpu_seconds(pid) for pid in _with_children(program.process.pid))
    return found


def spent(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Tell how many cores each has used, and in how many seconds."""
    seconds = after["time"] - before["time"]
    cores = {name: round((after[name] - before[name]) / seconds, 3) for name in ("web", "worker")}
    return {**cores, "seconds": round(seconds, 1)}


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:13]) / os.sysconf("SC_CLK_TCK")


def _with_children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _with_children(int(child)))]


class TestOtherCallers:
    def test_are_answered_as_fast_while_all_attacks_go_on_at_the_same_time(
        self, stack: Stack, open_org: Any, make_key: Any
    ) -> None:
        victim, token = open_org("victim")
        attackers = [open_org(f"attacker-{number}") for number in range(ATTACKERS)]
        order = [
            {
                "token": secret,
                "run": idle_run(access.org).id,
                "streams": -(-STREAMS // ATTACKERS),
                "silentKey": make_key("hang"),
            }
            for access, secret in attackers
        ]
        slow, _ = attackers[0]
        made = len(call_steadily(stack, token, calls=CALLS // 5))
        before = cpu_seconds(stack)
        alone = call_steadily(stack, token, calls=CALLS)
        made += len(alone)
        figures: dict[str, Any] = {"alone": figures_of(alone), "cpuAlone": spent(before, cpu_seconds(stack))}
        if IS_WHOLE:
            # What each of them does by itself is not judged, but says where to look.
            for kind in KINDS:
                with attack(stack, order, [kind]):
                    taken = call_steadily(stack, token, calls=CALLS // 2)
                    figures[f"beside {kind}"] = figures_of(taken)
                    made += len(taken)

        with attack(stack, order) as told:
            start_slow_runs(slow)
            wait_until(lambda: slow_runs_under_way(slow) == SLOW_RUNS, what="the start of all slow runs")
            before = cpu_seconds(stack)
            beside = call_steadily(stack, token, calls=CALLS)
            made += len(beside)
            figures |= {"beside": figures_of(beside), "cpuBeside": spent(before, cpu_seconds(stack))}
            figures["slowRunsAtTheEnd"] = slow_runs_under_way(slow)

        figures |= told
        print(json.dumps(figures))
        answered = {tuple(answer.rsplit(" ", 1)) for answer in told["answered"]}
        # A refusal says why. None failed, and no connection was closed without an answer.
        assert {status for _, status in answered} <= {"200", "400", "429"}, figures
        assert figures["slowRunsAtTheEnd"] == SLOW_RUNS, figures
        wait_until(lambda: ledger_of(victim.org)[0] >= made, what="the settlement of all calls")
        assert ledger_of(victim.org)[0] == made
        assert ledger_of(victim.org) == roll_ups_of(victim.org)
        if IS_WHOLE:
            # The slice ends before some of them are answered.
            assert {kind for kind, _ in answered} == set(KINDS), figures
            assert percentile(beside, 99) <= 2 * percentile(alone, 99), figures
