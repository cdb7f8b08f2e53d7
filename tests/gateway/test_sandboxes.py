"""A run in a sandbox: real bubblewrap, the real gateway, and the provider's stand-in."""

import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError, transaction
from rest_framework.test import APIClient

from billing.models import CostEvent
from catalog.models import CatalogEntry
from integrations.models import Integration, KeyOpening
from profiles import services as profiles
from rensei.core.clock import database_now
from rensei.core.errors import RateLimited
from rensei.core.models import WorkerHeartbeat
from rensei.dispatch import pools, run_tokens, services
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import execute, one_call, sandboxes
from rensei.dispatch.execution.lease_renewal import LeaseRenewal, LiveRun
from rensei.dispatch.execution.sandboxes import Sandboxes
from rensei.dispatch.models import Attempt, Run, Sandbox
from rensei.dispatch.pools import bubblewrap, relay
from rensei.dispatch.queue import claims
from rensei.dispatch.settlement import outcomes
from rensei.dispatch.settlement.outcomes import RunInterrupted
from rensei.gateway.limits import Limits
from rensei.orgs.access import Access
from rensei.policies import services as policies
from tests.dispatch.reconcile import assert_explained
from tests.gateway.line import Answer, exchange, message, settled
from tests.gateway.server import Server
from tests.gateway.test_runs import values
from tests.gateway.test_sandbox_crashes import programs
from tests.servers import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def dispatch(ada_access: Access, running: Sandboxes) -> Callable[..., Run]:
    def send(text: str, *, pool: str = "sandbox") -> Run:
        asked = messages_from(text=text, messages=None)
        return admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=asked, pool=pool))

    return send


@pytest.fixture
def carry_plain() -> Iterator[Callable[[Run], Run]]:
    """Carry a run of the local pool to its end."""
    renewal = LeaseRenewal(owner="test-worker")

    def carry(run: Run) -> Run:
        claim = claims.claim_next(owner=renewal.owner)
        assert claim is not None
        execute.execute(claim, renewal)
        run.refresh_from_db()
        return run

    yield carry
    renewal.close()


class TestARunInASandbox:
    @pytest.mark.parametrize(
        "text",
        [
            "[[reply 60 words]] Hello.",
            "[[fault:529 times=1]] Hello.",
            "[[fault:odd-text]] Hello.",
            '[[block {"type": "thinking", "thinking": "So be it.", "signature": "c2ln"}]] Hello.',
            "[[fault:unknown-events]] Hello.",
        ],
    )
    def test_gives_the_answer_and_the_costs_of_one_on_a_local_pool(
        self, byok: Any, dispatch: Any, finish: Any, carry_plain: Any, simulator: Any, text: str
    ) -> None:
        inside = finish(dispatch(text))
        plain = carry_plain(dispatch(text, pool="local"))

        assert inside.error is None
        assert inside.state == plain.state == Run.State.SUCCEEDED
        assert inside.output_text == plain.output_text != ""
        assert inside.output_content == plain.output_content
        assert inside.stop_reason == plain.stop_reason
        assert (inside.usage, inside.amount_picodollars) == (plain.usage, plain.amount_picodollars)
        assert_explained(simulator)

    @pytest.mark.parametrize("mode", ["metered", "shared"])
    def test_holds_and_settles_as_every_run(
        self, request: Any, mode: str, dispatch: Any, finish: Any, simulator: Any
    ) -> None:
        request.getfixturevalue(mode)

        run = finish(dispatch("Hello."))

        line = CostEvent.objects.get()
        assert run.state == Run.State.SUCCEEDED
        assert line.attempt_id == run.attempts.get().id
        assert line.billed == (mode == "metered")
        assert_explained(simulator)

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("[[fault:529]] Hello.", "PROVIDER_OVERLOADED"),
            ("[[fault:stream-error after=5]] Hello.", "PROVIDER_OVERLOADED"),
            ("[[fault:cut after=5]] Hello.", "PROVIDER_STREAM_BROKEN"),
        ],
    )
    def test_fails_with_the_error_of_its_call(
        self, byok: Any, dispatch: Any, finish: Any, simulator: Any, text: str, code: str
    ) -> None:
        run = finish(dispatch(text))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, code)
        assert_explained(simulator)

    def test_leaves_nothing_on_the_machine(self, byok: Any, dispatch: Any, finish: Any) -> None:
        run = finish(dispatch("Hello."))

        sandbox = run.sandboxes.get()
        assert sandbox.ended_at is not None
        assert bubblewrap._folders("box") == []

    def test_is_cancelled(self, byok: Any, ada_access: Access, dispatch: Any, running: Any, simulator: Any) -> None:
        run = dispatch("[[reply 400 words]] [[slow 0.05]]")
        running.start_next()
        wait_until(lambda: run.chunks.filter(kind="delta").exists(), what="the answer")

        services.cancel_run(ada_access, run)
        wait_until(lambda: not running._running, what="the end", seconds=5)

        run.refresh_from_db()
        assert run.state == Run.State.CANCELLED
        assert run.output_text
        settled()
        assert_explained(simulator)
        assert bubblewrap._folders("box") == []

    def test_fails_where_the_gateway_does_not_answer(
        self, byok: Any, dispatch: Any, finish: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay, "REACH_SECONDS_MAX", 0.0)
        settings.PUBLIC_URL = f"http://127.0.0.1:{free_port()}"

        run = finish(dispatch("Hello."))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "POOL_CANNOT_REACH_SERVER")
        assert not run.attempts.exists()

    def test_fails_where_none_can_be_created(
        self, byok: Any, dispatch: Any, finish: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = dispatch("Hello.")
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere")

        finish(run)

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SANDBOX_NOT_CREATED")
        assert not run.attempts.exists()

    def test_holds_what_its_call_costs_when_it_dies(
        self, metered: Any, dispatch: Any, running: Any, simulator: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sandboxes, "SETTLED_WITHIN_SECONDS", 0.0)
        run = dispatch("[[reply 60 words]] [[slow 0.05]]")
        running.start_next()
        wait_until(lambda: run.chunks.filter(kind="delta").exists(), what="the answer")

        os.kill(max(programs()), signal.SIGKILL)
        wait_until(lambda: not running._places, what="the end of the sandbox", seconds=5)
        run.refresh_from_db()
        assert run.state == Run.State.RUNNING
        wait_until(lambda: not running._running, what="the end")

        run.refresh_from_db()
        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SANDBOX_LOST")
        assert Sandbox.objects.get().calls_left == 0
        # The gateway reads the answer to its end, and it is paid for.
        assert run.attempts.get().state == Attempt.State.SETTLED
        assert not CostEvent.objects.filter(kind=CostEvent.Kind.ADJUSTMENT).exists()
        assert_explained(simulator)

    def test_keeps_its_answer_where_the_database_is_away_for_a_moment(
        self, byok: Any, dispatch: Any, finish: Any, running: Any, simulator: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_chunk, read = claims.add_chunk, Sandboxes._in_thread
        failed = []

        def adds(run: Run, **event: Any) -> bool:
            if "chunk" not in failed:
                failed.append("chunk")
                raise OperationalError
            return add_chunk(run, **event)

        async def reads(self: Sandboxes, work: Any, *args: Any, **named: Any) -> Any:
            if work is run_tokens.end and "exists" not in failed:
                failed.append("exists")
                raise OperationalError
            return await read(self, work, *args, **named)

        monkeypatch.setattr(claims, "add_chunk", adds)
        monkeypatch.setattr(Sandboxes, "_in_thread", reads)

        run = finish(dispatch("[[reply 60 words]] [[slow 0.01]]"))

        assert failed == ["chunk", "exists"]
        assert run.state == Run.State.SUCCEEDED
        assert_explained(simulator)

    @pytest.mark.parametrize(
        "content", [b"[1]", b'[{"type": "text"}]', b'[{"type": "text", "text": "x" * 1200000}] * 2', b"[{}]"]
    )
    def test_believes_no_answer_that_cannot_be_one(
        self, byok: Any, dispatch: Any, finish: Any, simulator: Any, monkeypatch: pytest.MonkeyPatch, content: bytes
    ) -> None:
        program = one_call.PROGRAM.replace(b'"content": message["content"]', b'"content": ' + content)
        monkeypatch.setattr(one_call, "PROGRAM", program)

        run = finish(dispatch("Hello."))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SANDBOX_LOST")
        assert_explained(simulator)

    def test_says_nothing_that_its_program_made_up(
        self, byok: Any, dispatch: Any, finish: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(one_call, "PROGRAM", b'print(\'{"error": {"code": "SPOOF", "message": "Pay here."}}\')')

        run = finish(dispatch("Hello."))

        assert run.error["code"] == "SANDBOX_NOT_CREATED"
        assert "Pay here" not in str(run.error)

    def test_calls_the_model_that_it_was_dispatched_for(
        self, metered: Any, dispatch: Any, finish: Any, carry_plain: Any, simulator: Any
    ) -> None:
        inside, plain = dispatch("Hello."), dispatch("Hello.", pool="local")
        model = CatalogEntry.objects.get(model_id=inside.served_model_id, org=None)
        CatalogEntry.objects.filter(pk=model.pk).update(
            retires_on=database_now().date(), replaced_by="claude-haiku-4-5-20251001"
        )

        finish(inside)
        carry_plain(plain)

        assert (inside.state, plain.state) == (Run.State.SUCCEEDED, Run.State.SUCCEEDED)
        assert [request["model"] for request in simulator.requests()] == [inside.served_model_id] * 2
        assert inside.amount_picodollars == plain.amount_picodollars
        assert_explained(simulator)

    def test_is_signed_by_the_key_that_it_was_dispatched_for(
        self, byok: Any, connect: Any, dispatch: Any, finish: Any, simulator: Any
    ) -> None:
        run = dispatch("Hello.")
        connect("other", is_default=True)

        finish(run)

        assert run.state == Run.State.SUCCEEDED
        assert {run.credential_id, run.attempts.get().credential_id} == {run.credential_id}
        assert KeyOpening.objects.get(run_id=run.id).record_id == run.credential_id

    def test_is_signed_by_another_key_of_the_pool_where_one_is_refused(
        self, metered: Any, add_key: Any, dispatch: Any, finish: Any, simulator: Any
    ) -> None:
        refused = add_key("metered", "revoked")

        run = finish(dispatch("Hello."))

        assert run.state == Run.State.SUCCEEDED
        assert run.attempts.order_by("number").values_list("credential_id", flat=True)[0] == refused.id
        assert run.attempts.count() == 2
        assert_explained(simulator)

    def test_is_refused_where_its_key_was_removed_meanwhile(self, byok: Any, dispatch: Any, finish: Any) -> None:
        run = dispatch("Hello.")
        Integration.objects.all().delete()

        finish(run)

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "BYOK_NOT_CONFIGURED")
        assert not run.attempts.exists()

    def test_makes_no_call_beyond_what_it_may_cost(
        self, byok: Any, ada_access: Access, dispatch: Any, finish: Any, simulator: Any
    ) -> None:
        run = dispatch("[[fault:504 times=1]] Hello.")
        Run.objects.update(max_cost_picodollars=10**9, call_picodollars_at_most=10**9)

        finish(run)

        assert (run.state, run.error["code"], run.attempt_count) == (Run.State.FAILED, "SPEND_CAP_EXCEEDED", 1)
        assert_explained(simulator)

    def test_needs_no_profile_any_more(self, byok: Any, ada_access: Access, dispatch: Any, finish: Any) -> None:
        run = dispatch("Hello.")
        profiles.delete_profile(ada_access, byok)

        assert finish(run).state == Run.State.SUCCEEDED

    def test_goes_on_while_others_are_prepared(
        self, byok: Any, dispatch: Any, running: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        goes_on, under_way = threading.Event(), threading.Semaphore(0)
        build = execute.build_for_sandbox

        def builds(*args: Any) -> Any:
            under_way.release()
            goes_on.wait(30)
            return build(*args)

        monkeypatch.setattr(execute, "build_for_sandbox", builds)
        for _ in range(sandboxes.PREPARED_AT_ONCE):
            dispatch("Hello.")
            running.start_next()
        for _ in range(sandboxes.PREPARED_AT_ONCE):
            assert under_way.acquire(timeout=10)

        other = running._in_loop(running._in_thread(Run.objects.count))

        assert other.result(timeout=10) == sandboxes.PREPARED_AT_ONCE
        goes_on.set()
        wait_until(lambda: not running._running, what="the end of all")

    def test_tells_its_worker_when_there_is_room(self, byok: Any, dispatch: Any, finish: Any, running: Any) -> None:
        told: list[int] = []
        running._on_end = lambda: told.append(len(running._places))

        finish(dispatch("Hello."))

        assert told == [0]

    def test_believes_no_answer_without_a_call(
        self, byok: Any, dispatch: Any, finish: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(one_call, "PROGRAM", b'print(\'{"message": {"content": [], "stop_reason": "end_turn"}}\')')

        run = finish(dispatch("Hello."))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "SANDBOX_LOST")

    def test_is_refused_by_what_was_changed_meanwhile(
        self, byok: Any, ada_access: Access, dispatch: Any, finish: Any
    ) -> None:
        run = dispatch("Hello.")
        policies.set_policy(ada_access, matrix={"*": {"byok": {"allowed": False}}})

        finish(run)

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "AUTHMODES_UNSATISFIABLE")
        assert not run.attempts.exists()


@pytest.fixture
def call(server: Server, running: Sandboxes) -> Callable[..., Answer]:
    """Call with the token of a run, as a sandbox might that was taken over."""

    def send(token: str, body: Any, *, path: str = "/v1/messages", method: str = "POST") -> Answer:
        return exchange(server, body, path=path, method=method, headers={"authorization": f"Bearer {token}"})

    return send


class TestARunToken:
    REQUEST = json.dumps(message("Hello.")).encode()

    @pytest.fixture
    def issue(self, byok: Any, dispatch: Any) -> Iterator[Callable[..., tuple[Run, str]]]:
        """Claim a run, and issue the token of its sandbox."""

        def do(request: bytes = self.REQUEST) -> tuple[Run, str]:
            dispatch("Hello.")
            claim = claims.claim_next_for_sandbox(owner="test")
            assert claim is not None
            found = run_tokens.issue(claim.run, provider_id="sandbox", request=request)
            assert found is not None
            return claim.run, found[1].reveal()

        yield do
        Run.objects.update(state=Run.State.FAILED)

    @pytest.fixture
    def issued(self, issue: Callable[..., tuple[Run, str]]) -> tuple[Run, str]:
        return issue()

    def test_makes_the_call_of_its_run_once(self, issued: Any, call: Any, simulator: Any) -> None:
        run, token = issued

        first, meanwhile = call(token, self.REQUEST), call(token, self.REQUEST)

        assert first.status == 200
        assert first.headers["x-rensei-run-id"] == run.id
        # Before it is settled, it may have failed.
        assert meanwhile.status in {403, 429}
        assert Run.objects.count() == 1
        wait_until(lambda: run.attempts.filter(state=Attempt.State.SETTLED).exists(), what="the settlement")
        again = call(token, self.REQUEST)
        assert (again.status, again.code, run.attempts.count()) == (403, "NOT_PERMITTED", 1)
        run.refresh_from_db()
        assert run.state == Run.State.RUNNING
        assert run.amount_picodollars == CostEvent.objects.get().amount_picodollars

    def test_makes_one_of_calls_that_come_together(self, issued: Any, call: Any, simulator: Any) -> None:
        _, token = issued

        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(lambda _: call(token, self.REQUEST).status, range(4)))

        assert statuses.count(200) == 1
        assert set(statuses) <= {200, 403, 429}

    def test_makes_three_calls_that_fail(self, issue: Any, call: Any, simulator: Any) -> None:
        request = json.dumps(message("[[fault:529]]")).encode()
        run, token = issue(request)

        statuses = []
        for number in range(4):
            statuses.append(call(token, request).status)
            ended = run.attempts.exclude(state=Attempt.State.OPEN)
            wait_until(lambda: ended.count() == min(3, number + 1), what="the settlement")  # noqa: B023

        assert statuses == [529, 529, 529, 403]

    def test_repeats_no_held_call_of_which_something_was_reported(self, issue: Any, call: Any) -> None:
        request = json.dumps(message("[[fault:504]] Hello.")).encode()
        run, token = issue(request)
        Run.objects.update(max_cost_picodollars=10**12, call_picodollars_at_most=10**6)
        lost = run.attempts.filter(state=Attempt.State.INDETERMINATE)

        call(token, request)
        wait_until(lost.exists, what="the settlement")
        # The simulator breaks no stream between the report of the prompt and the first block.
        lost.update(error=outcomes.refusal_error(RunInterrupted()) | {"code": "PROVIDER_STREAM_BROKEN"})
        again = call(token, request)

        assert (again.status, again.code, run.attempts.count()) == (403, "NOT_PERMITTED", 1)

    def test_makes_no_call_after_its_sandbox_has_ended(self, issued: Any, call: Any) -> None:
        run, token = issued
        run_tokens.end(Sandbox.objects.get())

        answer = call(token, self.REQUEST)

        assert (answer.status, answer.code) == (403, "NOT_PERMITTED")
        assert not run.attempts.exists()

    def test_makes_no_other_request(self, issued: Any, call: Any) -> None:
        _, token = issued

        other = call(token, json.dumps(message("Another.")).encode())

        assert (other.status, other.code) == (403, "NOT_PERMITTED")
        assert not Attempt.objects.exists()

    @pytest.mark.parametrize(
        ("path", "method"), [("/v1/messages/count_tokens", "POST"), ("/v1/models", "GET"), ("/v1/models/x", "GET")]
    )
    def test_opens_nothing_else_of_the_gateway(self, issued: Any, call: Any, path: str, method: str) -> None:
        assert call(issued[1], self.REQUEST, path=path, method=method).status == 403

    def test_opens_no_rest_route(self, issued: Any) -> None:
        api = APIClient()
        api.credentials(HTTP_AUTHORIZATION=f"Bearer {issued[1]}")

        for path in ("me", "runs", f"runs/{issued[0].id}", "profiles", "integrations"):
            assert api.get(f"/api/v1/{path}").status_code == 401

    @pytest.mark.parametrize("end", [{"state": "FAILED"}, {"epoch": 9}, {"cancel_requested_at": "2026-01-01T00:00Z"}])
    def test_ends_with_its_run_and_its_claim(self, issued: Any, call: Any, end: dict[str, Any]) -> None:
        run, token = issued
        Run.objects.filter(id=run.id).update(**end)

        assert call(token, self.REQUEST).status in {401, 403}
        assert not Attempt.objects.exists()

    def test_ends_with_the_membership(self, issued: Any, call: Any, ada: Any) -> None:
        ada.is_active = False
        ada.save()

        assert call(issued[1], self.REQUEST).status == 401

    def test_is_stored_as_a_hash(self, issued: Any, server: Server, call: Any) -> None:
        call(issued[1], self.REQUEST)

        assert [value[:80] for value in values() if issued[1] in value] == []
        assert issued[1] not in server.log()

    def test_counts_one_of_calls_that_are_written_together(self, issued: Any) -> None:
        run, _ = issued
        sandbox = run.sandboxes.get()
        now = database_now()
        of_run = [Attempt(run_id=run.id, epoch=run.epoch, started_at=now, credential_id="key_1") for _ in range(2)]
        deleted = Attempt(run_id="run_gone", epoch=1, started_at=now)

        with transaction.atomic(durable=True):
            refused = run_tokens.count_calls((sandbox.id, attempt) for attempt in [*of_run, deleted])

        assert {attempt.id: type(refused.get(attempt.id)) for attempt in [*of_run, deleted]} == {
            of_run[0].id: type(None),
            of_run[1].id: RateLimited,
            deleted.id: run_tokens.RunTokenUsedUp,
        }

    def test_has_no_rate_but_that_of_its_run(self, issued: Any, settings: Any) -> None:
        settings.RENSEI_GATEWAY_CALLS_AT_ONCE = 0
        access = run_tokens.for_token(token=issued[1])
        assert access is not None
        limits = Limits()

        with limits.within(access, []):
            assert not limits.live[access.org.id]
        limits.use(access, tokens=10**9)
        with limits.within(access, []):
            pass

    def test_keeps_the_lease_of_its_run_during_the_call(self, issued: Any) -> None:
        run, token = issued
        access = run_tokens.for_token(token=token)
        assert access is not None
        assert isinstance(access.token, run_tokens.RunToken)
        Run.objects.filter(id=run.id).update(lease_until=database_now())
        gateway = LeaseRenewal(owner="gateway:test")

        gateway._renew([LiveRun(access.token.run, seconds_left=60)])

        gateway.close()
        run.refresh_from_db()
        assert run.lease_until > database_now()


class TestThePool:
    def test_takes_no_settings(self, ada_access: Access, ada: Any, api_as: Any) -> None:
        api = api_as(ada)

        refused = api.post("/api/v1/pools", {"name": "lab", "providerId": "sandbox", "config": {"cpu": 2}})
        made = api.post("/api/v1/pools", {"name": "lab", "providerId": "sandbox"})

        assert (refused.status_code, made.status_code) == (400, 201)

    def test_has_a_name_of_its_own(self, byok: Any, ada_access: Access, dispatch: Any, finish: Any) -> None:
        services.create_pool(ada_access, name="lab", provider_id="sandbox", config={})

        run = finish(dispatch("Hello.", pool="lab"))

        assert (run.state, run.pool, run.sandboxes.get().pool) == (Run.State.SUCCEEDED, "lab", "lab")

    def test_is_offered_by_a_worker_that_can(self, byok: Any, ada_access: Access) -> None:
        def refusal() -> str:
            refused = pools.find_pool(ada_access.org, "sandbox").refusal
            return refused.cause if refused else ""

        assert refusal() == "No worker process is running that could start a sandbox."
        worker = WorkerHeartbeat.objects.create(worker="w", seen_at=database_now(), sandbox_refusal="no bubblewrap.")
        assert refusal() == "This server starts no sandboxes: no bubblewrap."
        WorkerHeartbeat.objects.create(worker="other", seen_at=database_now(), offers_sandboxes=True)
        assert refusal() == ""
        silent = database_now() - WorkerHeartbeat.SILENT_AFTER
        WorkerHeartbeat.objects.exclude(worker=worker.worker).update(seen_at=silent)
        assert refusal() == "This server starts no sandboxes: no bubblewrap."

    def test_has_no_more_than_its_slots(self, byok: Any, dispatch: Any, running: Any, settings: Any) -> None:
        settings.RENSEI_SANDBOXES_AT_ONCE = 3
        for number in range(4):
            dispatch(f"{number} [[slow 0.1]]")

        started = [running.start_next() for _ in range(4)]

        assert started == [True, True, False, False]
        wait_until(lambda: not running.start_next() and not running._running, what="the end of all")
        assert Run.objects.filter(state=Run.State.SUCCEEDED).count() == 4
