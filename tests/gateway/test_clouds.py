"""Runs and agents in clouds: the real gateway, and a stand-in for each cloud in which programs really run."""

import asyncio
import dataclasses
import itertools
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError

from billing.models import CostEvent
from integrations.keys import services as integrations
from integrations.models import Integration, KeyOpening
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.core.later import later
from rensei.core.models import WorkerHeartbeat
from rensei.core.secret import Secret
from rensei.dispatch import agents, org_deletion, pools, services
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import one_call, reaper, sandboxes
from rensei.dispatch.execution.sandboxes import Sandboxes
from rensei.dispatch.models import Attempt, Run, Sandbox
from rensei.dispatch.pools import cloud as clouds
from rensei.dispatch.pools.accounts import DRIVERS
from rensei.orgs.access import Access
from tests.cloud_stand_in import Fault, StandIn
from tests.dispatch.reconcile import assert_explained
from tests.dispatch.test_crashes import let_leases_run_out
from tests.dying import die_at
from tests.gateway.server import Server
from tests.gateway.test_agents import AGENT, DOLLAR
from tests.gateway.test_sandbox_crashes import carry_the_next, plant_death
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

HOST = "rensei.example.com"
NAME = {"e2b": "E2B", "vercel": "Vercel", "modal": "Modal"}
# The setting that names what a sandbox is made of, and further settings.
IMAGE = {"e2b": "template", "vercel": "image", "modal": "image"}
SIZE = {"e2b": (2, 512), "vercel": (2, 4096), "modal": (2, 2048)}
MORE: dict[str, dict[str, object]] = {"e2b": {}, "vercel": {"vcpus": 4}, "modal": {"vcpus": 4, "memoryMib": 1024}}


@pytest.fixture
def cloud(stand_in: StandIn, server: Server, running: Sandboxes, settings: Any) -> StandIn:
    """A cloud, which reaches the gateway under a public name."""
    settings.PUBLIC_URL = f"https://{HOST}"
    stand_in.hosts[HOST] = server.url
    return stand_in


@pytest.fixture
def account(cloud: StandIn, ada_access: Access) -> Integration:
    """Acme's account there."""
    return integrations.add_integration(
        ada_access, provider=cloud.provider, api_key=Secret(cloud.key), workspace_id=cloud.workspace_id
    )


@pytest.fixture
def dispatch(ada_access: Access, account: Integration) -> Callable[..., Run]:
    def send(text: str, *, pool: str = account.provider) -> Run:
        asked = messages_from(text=text, messages=None)
        return admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=asked, pool=pool))

    return send


@pytest.fixture
def dispatch_agent(ada_access: Access, account: Integration) -> Callable[..., Run]:
    def send(lines: str, *, cost: int = DOLLAR, pool: str = account.provider, **agent: Any) -> Run:
        files = [{"path": "agent.py", "content": AGENT + lines}]
        spec = agents.checked({"program": ["python3", "agent.py"], "files": files, **agent})
        asked = messages_from(text="My task.", messages=None)
        request = DispatchRequest(
            profile_id="prof_deep",
            messages=asked,
            pool=pool,
            max_cost_picodollars=cost,
            agent=spec,
        )
        return admit.dispatch(ada_access, request)

    return send


class TestARun:
    @pytest.mark.parametrize("mode", ["byok", "metered"])
    def test_calls_from_inside_and_is_paid_as_every_run(
        self, request: Any, mode: str, dispatch: Any, finish: Any, simulator: Any, cloud: StandIn
    ) -> None:
        request.getfixturevalue(mode)

        run = finish(dispatch("[[reply 60 words]] Hello."))

        assert (run.state, run.error) == (Run.State.SUCCEEDED, None)
        assert run.output_text
        assert CostEvent.objects.of_calls().get().billed == (mode == "metered")
        sandbox = run.sandboxes.get()
        assert (sandbox.provider_id, sandbox.ended_at is not None) == (cloud.provider, True)
        assert cloud.live() == []
        assert_explained(simulator)

    def test_has_a_line_for_the_seconds_of_its_sandbox(
        self,
        metered: Any,
        account: Integration,
        dispatch: Any,
        finish: Any,
        cloud: StandIn,
        simulator: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        end, began = sandboxes._finish, []
        monkeypatch.setattr(sandboxes, "_finish", lambda *run: (began.append(database_now()), end(*run)))

        run = finish(dispatch("Hello."))

        line, provider = CostEvent.objects.get(kind="capacity"), cloud.provider
        box = run.sandboxes.get()
        # Its seconds end when it is destroyed, and not after what the run waits for then.
        assert box.ended_at < began[0]
        seconds = math.ceil((box.ended_at - box.created_at).total_seconds())
        assert (line.run_id, line.attempt_id, line.pool_id, line.credential_id) == (
            run.id,
            box.id,
            provider,
            account.id,
        )
        assert (line.billing_class, line.provider, line.payer) == (f"capacity.{provider}", provider, "organization")
        assert (line.billed, line.estimated, line.sandbox_seconds) == (False, False, seconds)
        assert (box.vcpus, box.memory_mib) == SIZE[provider]
        # Vercel charges for the time that a processor computes, which it does not tell. That of Modal is not certain.
        price = {"e2b": 2 * 14_000_000 + 2_250_000}.get(provider)
        assert line.sandbox_second_picodollars == price
        assert line.amount_picodollars == (seconds * price if price else None)
        # The run's own amount is that of its calls.
        assert run.amount_picodollars == CostEvent.objects.of_calls().get().amount_picodollars
        assert_explained(simulator)

    @pytest.mark.parametrize("says", ["an error", "nothing"])
    def test_has_no_price_for_a_sandbox_of_unknown_size(
        self,
        byok: Any,
        dispatch: Any,
        finish: Any,
        cloud: StandIn,
        simulator: Any,
        monkeypatch: pytest.MonkeyPatch,
        says: str,
    ) -> None:
        # Modal is not asked for the size.
        if says == "an error" and cloud.provider != "modal":
            cloud.faults.append(Fault(on="show", does=500, times=2))
        else:
            monkeypatch.setattr(clouds, "ORDER_SECONDS", 0.05)
            monkeypatch.setattr(DRIVERS[cloud.provider], "size", lambda *_: asyncio.sleep(60))

        finish(dispatch("Hello."))

        line = CostEvent.objects.get(kind="capacity")
        assert (line.sandbox_second_picodollars, line.amount_picodollars) == (None, None)
        assert line.sandbox_seconds > 0
        assert_explained(simulator)

    def test_may_reach_this_server_only_with_its_token(
        self, byok: Any, dispatch: Any, finish: Any, cloud: StandIn
    ) -> None:
        run = finish(dispatch("Hello."))

        (box,) = cloud.boxes.values()
        assert list(box.rules) == [HOST]
        # A sandbox ends by itself soon after the deadline of its run.
        assert box.seconds <= (run.deadline_at - run.created_at).total_seconds() + 61
        assert box.tags == {
            "rensei-installation": HOST,
            "rensei-organization": run.org_id,
            "rensei-run": run.id,
            "rensei-epoch": "1",
            "rensei-sandbox": run.sandboxes.get().id,
        }
        ((host, method, path, headers),) = cloud.passed
        assert (host, method, path) == (HOST, "POST", "/v1/messages")
        sent = {name.lower(): value for name, value in headers.items()}["authorization"]
        assert sent.startswith("Bearer rsr_")
        assert box.rules[HOST] == ({"Authorization": sent} if cloud.adds_token else {})

    def test_opens_the_key_of_the_account_for_it(
        self, byok: Any, account: Integration, dispatch: Any, finish: Any
    ) -> None:
        run = finish(dispatch("Hello."))

        opened = KeyOpening.objects.filter(run_id=run.id).values_list("record_id", flat=True)
        assert set(opened) == {account.id, run.credential_id}

    def test_ends_with_the_error_of_its_call(self, byok: Any, dispatch: Any, finish: Any, simulator: Any) -> None:
        run = finish(dispatch("[[fault:cut after=5]] Hello."))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "PROVIDER_STREAM_BROKEN")
        assert_explained(simulator)

    def test_is_refused_by_the_gateway_in_its_words(
        self, byok: Any, ada_access: Access, dispatch: Any, finish: Any
    ) -> None:
        run = dispatch("Hello.")
        Integration.objects.filter(provider="claude").delete()

        finish(run)

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "BYOK_NOT_CONFIGURED")

    def test_is_cancelled(
        self, byok: Any, ada_access: Access, dispatch: Any, running: Any, cloud: StandIn, simulator: Any
    ) -> None:
        run = dispatch("[[reply 400 words]] [[slow 0.05]]")
        running.start_next()
        wait_until(lambda: run.chunks.filter(kind="delta").exists(), what="the answer")

        services.cancel_run(ada_access, run)
        wait_until(lambda: not cloud.live(), what="the end of the sandbox", seconds=5)
        wait_until(lambda: not running._running, what="the end")

        run.refresh_from_db()
        assert (run.state, run.output_text != "") == (Run.State.CANCELLED, True)
        assert_explained(simulator)

    @pytest.mark.parametrize("kind", ["create", "write"])
    def test_is_cancelled_while_its_sandbox_starts(
        self, byok: Any, ada_access: Access, dispatch: Any, running: Any, cloud: StandIn, kind: str
    ) -> None:
        cloud.faults.append(Fault(on=kind, does="ignored"))
        run = dispatch("Hello.")
        running.start_next()
        wait_until(lambda: kind in cloud.requests, what="the request")

        services.cancel_run(ada_access, run)
        wait_until(lambda: not running._running, what="the end")

        run.refresh_from_db()
        assert (run.state, cloud.live()) == (Run.State.CANCELLED, [])
        # A creation that was not answered may be carried out yet.
        assert (run.sandboxes.get().ended_at is None) == (kind == "create")

    def test_uses_what_its_pool_is_set_to(
        self, byok: Any, ada_access: Access, dispatch: Any, finish: Any, cloud: StandIn
    ) -> None:
        config: dict[str, object] = {"lifetimeSeconds": 120, **MORE[cloud.provider]}
        services.create_pool(ada_access, name="cloud", provider_id=cloud.provider, config=config)

        run = finish(dispatch("Hello.", pool="cloud"))

        (box,) = cloud.boxes.values()
        assert (run.state, run.pool) == (Run.State.SUCCEEDED, "cloud")
        assert (box.image, box.seconds) == (cloud.images[0], 120)
        assert box.new.get("resources", {}) == MORE[cloud.provider]


class TestAnAgent:
    def test_calls_and_leaves_files(
        self, byok: Any, dispatch_agent: Any, finish: Any, cloud: StandIn, simulator: Any
    ) -> None:
        lines = """
print(sys.stdin.read(), os.environ["ANTHROPIC_BASE_URL"])
print(ask("[[reply 5 words]]")[0], ask("[[reply 5 words]] again")[0])
open("made.txt", "w").write("made")
print("working", file=sys.stderr)
"""
        run = finish(dispatch_agent(lines, outputs=["*.txt"]))

        assert (run.state, run.error) == (Run.State.SUCCEEDED, None)
        assert run.output_text == f"My task. https://{HOST}\n200 200\n"
        assert [(file.path, bytes(file.content)) for file in run.files.all()] == [("made.txt", b"made")]
        assert run.attempts.count() == 2
        assert cloud.live() == []
        assert_explained(simulator)

    def test_makes_no_call_that_its_cap_does_not_cover(
        self, metered: Any, dispatch_agent: Any, finish: Any, simulator: Any
    ) -> None:
        lines = """
open("made.txt", "w").write("before")
for number in range(50):
    status, said = ask("[[reply 300 words]]", max_tokens=400)
    if status != 200:
        print(status)
        sys.exit(1)
"""
        run = finish(dispatch_agent(lines, cost=DOLLAR // 40, outputs=["*.txt"]))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SPEND_CAP_EXCEEDED")
        assert run.output_text == "429\n"
        assert run.files.count() == 1
        assert 0 < run.amount_picodollars <= DOLLAR // 40
        assert_explained(simulator)

    def test_ends_when_its_time_is_over(
        self, byok: Any, dispatch_agent: Any, running: Sandboxes, cloud: StandIn
    ) -> None:
        lines = 'open("made.txt", "w").write("x"); print("begun", flush=True); import time; time.sleep(600)'

        run = dispatch_agent(lines, timeoutSeconds=100, outputs=["*.txt"])
        running.start_next()
        wait_until(lambda: run.chunks.filter(kind="delta").exists(), what="the program")
        (live,) = running._renewal._live
        assert live.seconds_left <= 100
        live.deadline = 0
        wait_until(lambda: not running._running, what="the end")

        run.refresh_from_db()
        assert (run.state, run.error["code"], run.files.count()) == (Run.State.FAILED, "RUN_TIMEOUT", 1)
        assert cloud.live() == []

    def test_goes_on_while_the_database_is_away_for_a_moment(
        self, byok: Any, dispatch_agent: Any, finish: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, reads = sandboxes._noted, itertools.count()

        def noted(sandbox: Sandbox) -> Any:
            if next(reads) in {0, 2}:
                raise OperationalError("away")
            return read(sandbox)

        monkeypatch.setattr(sandboxes, "_noted", noted)

        run = finish(dispatch_agent("import time; time.sleep(1.2); print(ask('Hello.')[0])"))

        assert (run.state, run.output_text) == (Run.State.SUCCEEDED, "200\n")
        assert next(reads) > 2

    def test_waits_for_its_call_before(self, byok: Any, dispatch_agent: Any, finish: Any, simulator: Any) -> None:
        lines = """
import threading
answers = []
asking = [threading.Thread(target=lambda: answers.append(ask("[[reply 20 words]] [[slow 0.01]]")[0])) for _ in range(4)]
for each in asking: each.start()
for each in asking: each.join()
print(answers)
"""
        run = finish(dispatch_agent(lines))

        assert (run.output_text, run.attempts.count()) == ("[200, 200, 200, 200]\n", 4)
        assert_explained(simulator)

    def test_is_stopped_and_leaves_what_it_made(
        self, byok: Any, ada_access: Access, dispatch_agent: Any, running: Any, cloud: StandIn
    ) -> None:
        lines = 'open("made.txt", "w").write("x"); print("begun", flush=True); import time; time.sleep(600)'
        run = dispatch_agent(lines, outputs=["*.txt"])
        running.start_next()
        wait_until(lambda: run.chunks.filter(kind="delta").exists(), what="the program")

        services.cancel_run(ada_access, run)
        wait_until(lambda: not running._running, what="the end", seconds=10)

        run.refresh_from_db()
        assert (run.state, run.files.count()) == (Run.State.CANCELLED, 1)
        assert cloud.live() == []


class TestADispatch:
    @pytest.fixture
    def refused(self, byok: Any, ada_access: Access, cloud: StandIn) -> Callable[[], str]:
        def read() -> str:
            try:
                pools.find_pool(ada_access.org, cloud.provider).require_driver()
            except RenseiError as refusal:
                return f"{refusal.code} {refusal.detail}"
            return ""

        return read

    def test_is_refused_without_an_account(self, cloud: StandIn, refused: Callable[[], str]) -> None:
        assert refused().startswith(
            f"NO_ELIGIBLE_POOL No account at {NAME[cloud.provider]} is connected. An owner or admin"
        )

    def test_is_refused_where_no_cloud_reaches_the_server(
        self, cloud: StandIn, account: Integration, refused: Callable[[], str], settings: Any
    ) -> None:
        for url in (
            "http://127.0.0.1:8000",
            "https://192.168.1.7",
            "https://203.0.113.9",
            "https://[2606:4700::1]",
            "https://localhost",
            "https://rensei",
            "https://rensei.internal",
            "http://rensei.example.com",
            "https://rensei.example.com:8443",
        ):
            settings.PUBLIC_URL = url

            assert refused().startswith(
                f"POOL_CANNOT_REACH_SERVER A sandbox at {NAME[cloud.provider]} cannot reach this server"
            )
        assert cloud.boxes == {}

    def test_is_admitted_with_both(self, account: Integration, refused: Callable[[], str]) -> None:
        assert refused() == ""

    def test_of_a_host_session_needs_local_capacity(
        self, account: Integration, ada_access: Access, make_profile: Any, catalog: None
    ) -> None:
        make_profile(auth_modes=["host-session"])
        asked = messages_from(text="Hello.", messages=None)

        with pytest.raises(RenseiError) as refusal:
            admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=asked, pool=account.provider))

        assert refusal.value.code == "AUTH_MODE_REQUIRES_LOCAL_CAPACITY"

    def test_waits_for_no_worker_that_isolates(
        self, byok: Any, ada_access: Access, dispatch: Any, running: Sandboxes, cloud: StandIn
    ) -> None:
        inside, outside = dispatch("Hello.", pool="sandbox"), dispatch("Hello.")
        running.refusal = "no bubblewrap."

        assert running.start_next()
        wait_until(lambda: not running._running, what="the sandbox")

        assert not running.start_next()
        inside.refresh_from_db()
        outside.refresh_from_db()
        assert (inside.state, outside.state) == (Run.State.QUEUED, Run.State.SUCCEEDED)
        services.cancel_run(ada_access, inside)


class TestABadDay:
    @pytest.mark.parametrize(
        ("does", "code"),
        [
            (401, "POOL_CREDENTIAL_REFUSED"),
            (429, "POOL_FULL"),
            (404, "SANDBOX_NOT_CREATED"),
        ],
    )
    def test_in_which_none_is_created(
        self, byok: Any, account: Integration, dispatch: Any, finish: Any, cloud: StandIn, does: int, code: str
    ) -> None:
        cloud.faults.append(Fault(on="create", does=does))

        run = finish(dispatch("Hello."))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, code)
        assert not run.attempts.exists()
        assert cloud.boxes == {}
        assert run.sandboxes.get().ended_at is not None
        assert not CostEvent.objects.exists()
        account.refresh_from_db()
        assert account.status == ("failing" if code == "POOL_CREDENTIAL_REFUSED" else "untested")

    def test_in_which_the_key_works_again(
        self, byok: Any, account: Integration, dispatch: Any, finish: Any, cloud: StandIn
    ) -> None:
        cloud.faults.append(Fault(on="create", does=401))
        finish(dispatch("Hello."))
        account.refresh_from_db()
        assert account.status == "failing"

        finish(dispatch("Hello."))

        account.refresh_from_db()
        assert (account.status, account.last_error) == ("ok", None)

    def test_in_which_it_is_not_certain_that_none_is_created(
        self, byok: Any, dispatch: Any, finish: Any, cloud: StandIn
    ) -> None:
        """A proxy may say that there is no room after the provider has created it."""
        cloud.faults.append(Fault(on="create", does=503, times=2))

        run = finish(dispatch("Hello."))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "POOL_FULL")
        assert run.sandboxes.get().ended_at is None

    def test_with_an_answer_that_is_lost_once(self, byok: Any, dispatch: Any, finish: Any, cloud: StandIn) -> None:
        cloud.faults.append(Fault(on="create", does="lost"))

        run = finish(dispatch("Hello."))

        assert run.state == Run.State.SUCCEEDED
        assert (len(cloud.boxes), cloud.live()) == (1, [])

    @pytest.mark.parametrize("after", ["lost", 429])
    def test_with_an_answer_that_is_lost_for_good(
        self, byok: Any, dispatch: Any, finish: Any, cloud: StandIn, after: int | str
    ) -> None:
        cloud.faults += [Fault(on="create", does=does) for does in ("lost", after)]

        run = finish(dispatch("Hello."))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SANDBOX_NOT_CREATED")
        assert (len(cloud.boxes), cloud.live()) == (1, [])
        # It is looked for again, since a sandbox that was just created may not be listed.
        assert run.sandboxes.get().ended_at is None
        assert not CostEvent.objects.exists()

    def test_with_a_template_without_python(
        self, byok: Any, ada_access: Access, dispatch: Any, finish: Any, cloud: StandIn
    ) -> None:
        services.create_pool(
            ada_access, name="bare", provider_id=cloud.provider, config={IMAGE[cloud.provider]: cloud.without_python}
        )

        run = finish(dispatch("Hello.", pool="bare"))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SANDBOX_NOT_CREATED")
        assert "no Python 3" in run.error["detail"]
        assert cloud.live() == []

    @pytest.mark.parametrize("kind", ["write", "start"])
    def test_in_which_the_sandbox_dies_before_its_call(
        self, byok: Any, dispatch: Any, finish: Any, cloud: StandIn, kind: str
    ) -> None:
        cloud.faults.append(Fault(on=kind, does=502))

        run = finish(dispatch("Hello."))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SANDBOX_NOT_CREATED")
        assert not run.attempts.exists()
        assert cloud.live() == []

    def test_in_which_the_sandbox_dies_during_its_call(
        self, metered: Any, dispatch: Any, running: Any, cloud: StandIn, simulator: Any
    ) -> None:
        run = dispatch("[[reply 150 words]] [[slow 0.02]]")
        running.start_next()
        wait_until(lambda: run.chunks.filter(kind="delta").exists(), what="the answer")

        (box,) = cloud.live()
        cloud.kill(box)
        wait_until(lambda: not running._running, what="the end")

        run.refresh_from_db()
        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SANDBOX_LOST")
        # The gateway reads the answer to its end, and it is paid for.
        assert run.attempts.get().state == Attempt.State.SETTLED
        assert_explained(simulator)

    def test_in_which_it_does_not_reach_the_server(
        self, byok: Any, dispatch: Any, finish: Any, cloud: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = one_call.PROGRAM.replace(b"REACH_SECONDS = 60.0", b"REACH_SECONDS = 0.0")
        monkeypatch.setattr(
            one_call, "PROGRAM", program.replace(b"HTTPSConnection(", b"HTTPSConnection(port=444, host=")
        )

        run = finish(dispatch("Hello."))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "POOL_CANNOT_REACH_SERVER")

    @pytest.mark.parametrize("fault", [{"is_trusted": False}, {"hours_until": 24}], ids=["authority", "clock"])
    def test_in_which_it_trusts_no_certificate(
        self, byok: Any, dispatch: Any, finish: Any, cloud: StandIn, monkeypatch: pytest.MonkeyPatch, fault: Any
    ) -> None:
        monkeypatch.setattr(
            one_call, "PROGRAM", one_call.PROGRAM.replace(b"REACH_SECONDS = 60.0", b"REACH_SECONDS = 0.0")
        )
        cloud.certify(**fault)

        run = finish(dispatch("Hello."))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "POOL_CANNOT_REACH_SERVER")
        assert (run.attempts.count(), cloud.passed, cloud.live()) == (0, [], [])

    def test_in_which_its_sandbox_lives_shorter_than_its_run(
        self, byok: Any, ada_access: Access, dispatch_agent: Any, running: Sandboxes, cloud: StandIn
    ) -> None:
        lines = 'open("made.txt", "w").write("x"); print("begun", flush=True); import time; time.sleep(600)'
        services.create_pool(ada_access, name="short", provider_id=cloud.provider, config={"lifetimeSeconds": 60})

        run = dispatch_agent(lines, pool="short", timeoutSeconds=600, outputs=["*.txt"])
        running.start_next()
        wait_until(lambda: run.chunks.filter(kind="delta").exists(), what="the program")
        (live,) = running._renewal._live
        assert live.seconds_left <= 30
        live.deadline = 0
        wait_until(lambda: not running._running, what="the end")

        run.refresh_from_db()
        assert (run.state, run.error["code"], run.files.count()) == (Run.State.FAILED, "RUN_TIMEOUT", 1)
        assert cloud.live() == []

    def test_in_which_its_pool_is_removed(
        self, byok: Any, ada_access: Access, dispatch: Any, finish: Any, cloud: StandIn
    ) -> None:
        pool = services.create_pool(ada_access, name="cloud", provider_id=cloud.provider, config={})
        run = dispatch("Hello.", pool="cloud")
        services.remove_pool(ada_access, pool)

        finish(run)

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "NO_ELIGIBLE_POOL")
        assert cloud.boxes == {}

    def test_in_which_its_account_is_disconnected(
        self, byok: Any, account: Integration, dispatch: Any, finish: Any, cloud: StandIn
    ) -> None:
        run = dispatch("Hello.")
        account.delete()

        finish(run)

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "NO_ELIGIBLE_POOL")
        assert cloud.boxes == {}


class TestAWorkerThatDies:
    def test_lets_its_agent_spend_no_more(self, byok: Any, dispatch_agent: Any, finish: Any, simulator: Any) -> None:
        """Each of its calls would renew the lease of the run, which another worker ends."""
        run = dispatch_agent("print(ask('Hello.')[0])")
        WorkerHeartbeat.objects.update(seen_at=database_now() - WorkerHeartbeat.SILENT_AFTER)

        finish(run)

        assert (run.output_text, run.attempts.count()) == ("403\n", 0)
        assert simulator.requests() == []

    @pytest.mark.parametrize("point", ["after-the-row", "mid-stream"])
    def test_leaves_no_sandbox(
        self, byok: Any, dispatch: Any, running: Sandboxes, cloud: StandIn, simulator: Any, finish: Any, point: str
    ) -> None:
        run = dispatch("[[reply 200 words]] [[slow 0.02]]")
        die_at(point, plant=plant_death, work=carry_the_next)
        wait_until(lambda: not Attempt.objects.filter(state=Attempt.State.OPEN).exists(), what="the call")
        let_leases_run_out()
        reaper.reap()

        assert len(cloud.live()) == (point == "mid-stream")
        _sweep(running)
        # A creation may be under way still.
        assert Sandbox.objects.get().ended_at is None
        Sandbox.objects.update(created_at=database_now() - timedelta(minutes=3))
        _sweep(running)

        assert cloud.live() == []
        assert Sandbox.objects.get().ended_at is not None
        line = CostEvent.objects.get(kind="capacity")
        assert line.estimated == (point == "after-the-row")
        # It was there until now, or it is not known whether there was one.
        assert (line.amount_picodollars is None) == (point == "after-the-row" or cloud.provider != "e2b")
        # It cannot have lived much longer than its run may.
        assert line.sandbox_seconds <= (run.deadline_at - Sandbox.objects.get().created_at).total_seconds() + 61
        _sweep(running)
        assert CostEvent.objects.filter(kind="capacity").count() == 1
        run.refresh_from_db()
        assert run.state == (Run.State.FAILED if point == "mid-stream" else Run.State.QUEUED)
        if run.state == Run.State.QUEUED:
            assert finish(run).state == Run.State.SUCCEEDED
        assert_explained(simulator)

    def test_leaves_no_sandbox_where_its_organization_is_deleted(
        self, byok: Any, dispatch: Any, running: Sandboxes, cloud: StandIn, ada_access: Access
    ) -> None:
        dispatch("[[reply 200 words]] [[slow 0.02]]")
        die_at("mid-stream", plant=plant_death, work=carry_the_next)
        wait_until(lambda: not Attempt.objects.filter(state=Attempt.State.OPEN).exists(), what="the call")
        let_leases_run_out()
        reaper.reap()
        org_deletion.delete_org(ada_access, confirm="acme")
        later.wait()
        assert len(cloud.live()) == 1

        Sandbox.objects.update(created_at=database_now() - timedelta(minutes=3))
        _sweep(running)

        assert cloud.live() == []
        assert CostEvent.objects.get(kind="capacity").estimated is False

    def test_before_the_line_of_its_sandbox_leaves_one(
        self, byok: Any, dispatch: Any, running: Sandboxes, cloud: StandIn, simulator: Any
    ) -> None:
        run = dispatch("Hello.")
        die_at("before-the-line-commits", plant=plant_death, work=carry_the_next)

        run.refresh_from_db()
        assert (run.state, cloud.live()) == (Run.State.SUCCEEDED, [])
        # The end of the sandbox and its line are one transaction.
        assert (Sandbox.objects.get().ended_at, CostEvent.objects.filter(kind="capacity").count()) == (None, 0)
        Sandbox.objects.update(created_at=database_now() - timedelta(minutes=3))
        _sweep(running)
        _sweep(running)

        line = CostEvent.objects.get(kind="capacity")
        # When it was destroyed, the dead worker alone knew.
        assert (line.run_id, line.estimated) == (run.id, True)
        assert (line.amount_picodollars is None) == (cloud.provider != "e2b")
        assert_explained(simulator)

    def test_leaves_those_of_others(
        self, byok: Any, ada_access: Access, account: Integration, dispatch: Any, running: Sandboxes, cloud: StandIn
    ) -> None:
        run = dispatch("[[reply 400 words]] [[slow 0.05]]")
        running.start_next()
        wait_until(lambda: len(cloud.live()) == 1, what="the sandbox")
        (box,) = cloud.live()
        dead = dispatch("Hello.")
        services.cancel_run(ada_access, dead)
        row = Sandbox.objects.create(
            org=dead.org,
            run=dead,
            epoch=1,
            pool=cloud.provider,
            provider_id=cloud.provider,
            credential_id=account.id,
            workspace_id=cloud.workspace_id,
            token_digest="x",
            calls_left=0,
            created_at=database_now() - timedelta(hours=1),
        )
        left = cloud.copy(box, row_id=row.id)

        # Where another account would be asked, it is not known whether the sandbox lives.
        for other in ({"credential_id": "int_removed"}, {"workspace_id": "team_1/prj_former"}):
            was = Sandbox.objects.filter(id=row.id).values(*other).get()
            Sandbox.objects.filter(id=row.id).update(**other)
            _sweep(running)
            assert (left.is_dead, Sandbox.objects.get(id=row.id).ended_at) == (False, None)
            Sandbox.objects.filter(id=row.id).update(**was)
        integrations.add_integration(
            ada_access,
            provider=cloud.provider,
            api_key=Secret(next(key for key in cloud.keys if key != cloud.key)),
            workspace_id=cloud.workspace_id,
            is_default=True,
        )
        _sweep(running)

        assert cloud.live() == [box]
        assert left.is_dead
        assert Sandbox.objects.get(id=row.id).ended_at is not None
        services.cancel_run(ada_access, run)
        wait_until(lambda: not running._running, what="the end")

    @pytest.mark.parametrize("fault", [Fault(on="delete", does=500), Fault(on="list", does=401)], ids=["one", "key"])
    def test_leaves_what_another_sweep_ends(
        self,
        byok: Any,
        ada_access: Access,
        account: Integration,
        dispatch: Any,
        running: Sandboxes,
        cloud: StandIn,
        fault: Fault,
    ) -> None:
        """One sandbox that its provider does not destroy keeps no others, and a refused key is told."""
        run = dispatch("[[reply 400 words]] [[slow 0.05]]")
        running.start_next()
        wait_until(lambda: len(cloud.live()) == 1, what="the sandbox")
        (box,) = cloud.live()
        rows = [
            Sandbox.objects.create(
                org=run.org,
                run=run,
                epoch=99 + number,
                pool=cloud.provider,
                provider_id=cloud.provider,
                credential_id=account.id,
                workspace_id=cloud.workspace_id,
                token_digest=f"x{number}",
                calls_left=0,
                created_at=database_now() - timedelta(hours=1),
            )
            for number in range(2)
        ]
        left = [cloud.copy(box, row_id=row.id) for row in rows]
        cloud.faults.append(dataclasses.replace(fault))

        _sweep(running)

        kept = [row.id for row in rows if Sandbox.objects.get(id=row.id).ended_at is None]
        assert kept == [each.tags["rensei-sandbox"] for each in left if not each.is_dead]
        assert len(kept) == (1 if fault.on == "delete" else 2)
        account.refresh_from_db()
        assert account.status == ("untested" if fault.on == "delete" else "failing")
        _sweep(running)
        assert cloud.live() == [box]
        services.cancel_run(ada_access, run)
        wait_until(lambda: not running._running, what="the end")


def _sweep(running: Sandboxes) -> None:
    asyncio.run_coroutine_threadsafe(running._sweep_once(), running._loop).result(timeout=30)
