"""Host sessions, the server's half, with a machine that is a plain REST client and holds its own key."""

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import anthropic
import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections
from django.test import AsyncClient
from PIL import Image
from rest_framework.test import APIClient

from billing.models import CostEvent
from catalog.models import CatalogEntry
from integrations.providers.anthropic import pictures
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.dispatch.execution import reaper
from rensei.dispatch.host_sessions import leases
from rensei.dispatch.models import Attempt, CapacityPool, Run, RunChunk
from rensei.dispatch.queue import claims
from rensei.dispatch.settlement import audit
from rensei.orgs.access import Access
from rensei.orgs.models import Host, Project, User
from rensei.policies import services as policies
from rensei.tokens.machines import register_host, revoke_host
from rensei.tokens.services import create_token
from tests.dispatch.reconcile import assert_explained

pytestmark = pytest.mark.django_db(transaction=True)

HAIKU = "claude-haiku-4-5-20251001"
ASKED = "[[reply 40 words]] Tell me of the sea."


class Machine:
    """A developer's machine: what it sends to Rensei goes through `api`, and its key stays in its environment."""

    def __init__(self, host: Host, token: str, environment: dict[str, str]) -> None:
        self.host = host
        self.headers = {"Authorization": f"Bearer {token}"}
        self.environment = environment
        self.request_id = ""
        self.api = APIClient()
        self.api.default_format = "json"
        self.api.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")

    def lease(self, **body: Any) -> Any:
        return self.api.post(f"/api/v1/hosts/{self.host.id}/lease", body)

    def tell(self, verb: str, lease: dict[str, Any], **body: Any) -> Any:
        return self.api.post(f"/api/v1/runs/{lease['run']['id']}/lease/{verb}", {"epoch": lease["epoch"], **body})

    def call(self, lease: dict[str, Any]) -> anthropic.types.Message:
        client = anthropic.Anthropic(
            api_key=self.environment["ANTHROPIC_API_KEY"],
            base_url=self.environment["ANTHROPIC_BASE_URL"],
            max_retries=0,
        )
        marked = {"x-rensei-attempt": lease["attemptId"]}
        with client, client.messages.stream(**lease["request"], extra_headers=marked) as stream:
            message = stream.get_final_message()
            self.request_id = stream.response.headers["request-id"]
        return message

    def report(self, message: anthropic.types.Message) -> dict[str, Any]:
        """Write what a real machine reports of an answer."""
        return {
            "state": "SUCCEEDED",
            "sent": True,
            "output": {
                "text": "".join(block.text for block in message.content if block.type == "text"),
                "content": [block.to_dict() for block in message.content],
                "stopReason": message.stop_reason,
            },
            "usage": {"inputTokens": message.usage.input_tokens, "outputTokens": message.usage.output_tokens},
            "providerRequestId": self.request_id,
        }

    def carry_out(self) -> Any:
        lease = self.lease().json()
        return self.tell("finish", lease, **self.report(self.call(lease)))


@pytest.fixture
def make_machine(
    simulator: Any, access_of: Callable[..., Access], make_key: Callable[..., str], catalog: None
) -> Callable[..., Machine]:
    def make(user: User, name: str = "laptop") -> Machine:
        host, _, secret = register_host(access_of(user), name=name)
        environment = {"ANTHROPIC_API_KEY": make_key(), "ANTHROPIC_BASE_URL": simulator.url}
        return Machine(host, secret.reveal(), environment)

    return make


@pytest.fixture
def machine(make_machine: Callable[..., Machine], ada: User, ada_access: Access) -> Machine:
    return make_machine(ada)


@pytest.fixture
def dispatch(machine: Machine, make_profile: Callable[..., Any]) -> Callable[..., Run]:
    """Dispatch a host-session run to Ada's machine, as she does from a browser."""
    make_profile(auth_modes=["host-session"])

    def send(**body: Any) -> Run:
        said = {} if "messages" in body else {"input": ASKED}
        asked = {"profileId": "prof_deep", **said, **body}
        answer = machine.api.post("/api/v1/runs", asked)
        assert answer.status_code == 202, answer.json()
        run: Run = Run.objects.get(id=answer.json()["id"])
        return run

    return send


@pytest.fixture
def _close_the_connections_of_the_async_side(transactional_db: None) -> Iterator[None]:
    yield
    asyncio.run(sync_to_async(connections.close_all)())


def let_the_lease_run_out(run: Run) -> None:
    Run.objects.filter(id=run.id).update(lease_until=database_now() - claims.LEASE)


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def error_code(run: Run) -> str:
    assert run.error is not None
    return str(run.error["code"])


def everything_stored() -> str:
    """Every value of every table, as text."""
    found: list[str] = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names():
            cursor.execute(f'SELECT * FROM "{table}"')
            found.extend(repr([bytes(v) if isinstance(v, memoryview) else v for v in row]) for row in cursor.fetchall())
    return "\n".join(found)


class TestLease:
    def test_carries_the_finished_request_and_writes_the_attempt(
        self, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        run = dispatch(system="You are a sailor.", effort="high", maxTokens=900)

        lease = machine.lease().json()

        run.refresh_from_db()
        attempt = run.attempts.get()
        assert lease["request"]["model"] == "claude-opus-5-5"
        assert lease["request"]["max_tokens"] == 900
        assert lease["request"]["output_config"] == {"effort": "high"}
        assert "You are a sailor." in str(lease["request"]["system"])
        assert (lease["run"]["id"], lease["run"]["state"], lease["epoch"]) == (run.id, "RUNNING", 1)
        assert (lease["attemptId"], attempt.state, attempt.credential_id) == (attempt.id, "OPEN", machine.host.id)
        assert run.lease_owner == f"host:{machine.host.id}"
        assert run.attempt_count == 1
        machine.host.refresh_from_db()
        assert machine.host.last_seen_at is not None

    def test_is_empty_where_nothing_waits(self, machine: Machine) -> None:
        answer = machine.lease()

        assert (answer.status_code, answer.content) == (204, b"")

    def test_is_never_taken_by_a_worker_of_the_server(
        self, dispatch: Callable[..., Run], work: Callable[[], list[Run]]
    ) -> None:
        dispatch()

        assert work() == []
        assert claims.claim_next(owner="a-worker") is None

    def test_takes_the_oldest_run_first_and_a_named_one_before_it(
        self, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        first, second, third = dispatch(), dispatch(), dispatch()

        named = machine.lease(runId=third.id).json()["run"]["id"]
        next_ones = [machine.lease().json()["run"]["id"] for _ in range(2)]

        assert named == third.id
        assert next_ones == [first.id, second.id]

    def test_of_a_named_run_that_has_begun_is_empty(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        run = dispatch()
        machine.lease()

        assert machine.lease(runId=run.id).status_code == 204

    def test_gives_the_time_that_every_call_has(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        run = dispatch()
        Run.objects.filter(id=run.id).update(deadline_at=database_now() + timedelta(seconds=2))

        machine.lease()

        run.refresh_from_db()
        assert run.deadline_at > database_now() + timedelta(minutes=9)

    @pytest.mark.parametrize("body", [{"wait": 26}, {"wait": -1}, {"wait": "long"}, {"password": "x"}, [], [1]])
    def test_refuses_a_body_that_is_not_one(self, machine: Machine, body: Any) -> None:
        answer = machine.api.post(f"/api/v1/hosts/{machine.host.id}/lease", body)

        assert code_of(answer) == (400, "VALIDATION_FAILED")

    def test_goes_to_one_of_two_workers_that_ask_at_once(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        run = dispatch()
        answers: list[Any] = []

        def ask() -> None:
            answers.append(Machine(machine.host, machine.headers["Authorization"][7:], {}).lease())
            connections.close_all()

        workers = [threading.Thread(target=ask) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

        assert sorted(answer.status_code for answer in answers) == [200, 204, 204, 204]
        assert run.attempts.count() == 1

    @pytest.mark.usefixtures("_close_the_connections_of_the_async_side")
    def test_comes_as_soon_as_a_run_does(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        dispatched: list[Run] = []

        def later() -> None:
            time.sleep(0.5)
            dispatched.append(dispatch())
            connections.close_all()

        sender = threading.Thread(target=later)
        sender.start()
        began = time.monotonic()

        answer = asyncio.run(
            AsyncClient().post(
                f"/api/v1/hosts/{machine.host.id}/lease",
                data={"wait": 20},
                content_type="application/json",
                headers=machine.headers,
            )
        )

        sender.join()
        assert answer.json()["run"]["id"] == dispatched[0].id
        assert time.monotonic() - began < 15

    @pytest.mark.usefixtures("_close_the_connections_of_the_async_side")
    def test_is_empty_when_the_wait_is_over(self, machine: Machine) -> None:
        began = time.monotonic()

        answer = machine.lease(wait=1)

        assert answer.status_code == 204
        assert time.monotonic() - began >= 1


class TestLeaseOfAnother:
    def test_machine_is_not_found(self, machine: Machine, make_machine: Callable[..., Machine], ada: User) -> None:
        other = make_machine(ada, "desktop")

        answer = machine.api.post(f"/api/v1/hosts/{other.host.id}/lease", {})

        assert code_of(answer) == (404, "NOT_FOUND")

    def test_kind_of_token_is_refused(self, machine: Machine, ada: User, api_as: Callable[..., APIClient]) -> None:
        answer = api_as(ada).post(f"/api/v1/hosts/{machine.host.id}/lease", {})

        assert code_of(answer) == (403, "SCOPE_MISSING")

    def test_members_run_is_not_found(
        self, machine: Machine, dispatch: Callable[..., Run], make_machine: Callable[..., Machine], mia: User
    ) -> None:
        run = dispatch()
        other = make_machine(mia, "mias")

        named = other.lease(runId=run.id)
        beat = other.api.post(f"/api/v1/runs/{run.id}/lease/heartbeat", {"epoch": 0})

        assert code_of(named) == (404, "NOT_FOUND")
        assert code_of(beat) == (404, "NOT_FOUND")

    def test_machines_run_is_refused(
        self, machine: Machine, dispatch: Callable[..., Run], make_machine: Callable[..., Machine], ada: User
    ) -> None:
        run = dispatch(hostId=machine.host.id)
        other = make_machine(ada, "desktop")

        named = other.lease(runId=run.id)
        any_run = other.lease()
        beat = other.api.post(f"/api/v1/runs/{run.id}/lease/heartbeat", {"epoch": 0})

        assert code_of(named) == (409, "HOST_SESSION_WRONG_MACHINE")
        assert any_run.status_code == 204
        assert code_of(beat) == (409, "HOST_SESSION_WRONG_MACHINE")
        assert not Attempt.objects.exists()

    def test_projects_run_is_not_found_by_a_token_of_one_project(
        self,
        machine: Machine,
        dispatch: Callable[..., Run],
        access_of: Callable[..., Access],
        ada: User,
        project: Project,
    ) -> None:
        run = dispatch()
        _, secret = create_token(access_of(ada), name="one project", host=machine.host, project=project)
        bound = Machine(machine.host, secret.reveal(), {})

        answer = bound.lease(runId=run.id)

        assert code_of(answer) == (404, "NOT_FOUND")
        assert answer.json()["errors"][0]["pointer"] == "/runId"
        assert bound.lease().status_code == 204

    def test_kind_of_run_is_refused(
        self, machine: Machine, connect: Callable[..., Any], make_profile: Callable[..., Any]
    ) -> None:
        connect()
        make_profile()
        run_id = machine.api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).json()["id"]

        assert code_of(machine.lease(runId=run_id)) == (409, "HOST_SESSION_WRONG_MACHINE")
        assert machine.lease().status_code == 204

    def test_machine_that_was_revoked_is_shut_out(
        self, machine: Machine, dispatch: Callable[..., Run], ada_access: Access
    ) -> None:
        dispatch()
        revoke_host(ada_access, machine.host)

        assert code_of(machine.lease()) == (401, "NOT_AUTHENTICATED")


class TestLeaseOfARunThatCannotBeCarriedOut:
    def test_is_refused_where_the_pool_has_become_a_cloud(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run], ada_access: Access
    ) -> None:
        CapacityPool.objects.create(org=ada_access.org, name="office", provider_id="local")
        run = dispatch(pool="office")
        CapacityPool.objects.update(provider_id="e2b")

        answer = machine.lease(runId=run.id)

        run.refresh_from_db()
        assert code_of(answer) == (409, "AUTH_MODE_REQUIRES_LOCAL_CAPACITY")
        assert answer.json()["run"]["state"] == "FAILED"
        assert (run.state, error_code(run)) == ("FAILED", "AUTH_MODE_REQUIRES_LOCAL_CAPACITY")
        assert not Attempt.objects.exists()
        assert_explained(simulator)

    def test_goes_on_where_the_pool_was_only_switched_off(
        self, machine: Machine, dispatch: Callable[..., Run], ada_access: Access
    ) -> None:
        CapacityPool.objects.create(org=ada_access.org, name="office", provider_id="local")
        dispatch(pool="office")
        CapacityPool.objects.update(active=False)

        assert machine.lease().status_code == 200

    def test_ends_it_without_an_attempt_and_gives_the_next(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        image = {"type": "image", "source": {"type": "url", "url": "https://no-such-host.invalid/picture.png"}}
        broken = dispatch(messages=[{"role": "user", "content": [image]}])
        whole = dispatch()

        answer = machine.carry_out()

        broken.refresh_from_db()
        assert answer.json()["id"] == whole.id
        assert (broken.state, error_code(broken)) == ("FAILED", "INVALID_IMAGE")
        assert not broken.attempts.exists()
        assert_explained(simulator)

    def test_waits_in_the_queue_while_the_pictures_of_others_are_unpacked(
        self, machine: Machine, dispatch: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pixels = io.BytesIO()
        Image.new("RGB", (8, 8)).save(pixels, "PNG")
        data = base64.b64encode(pixels.getvalue()).decode()
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
        run = dispatch(messages=[{"role": "user", "content": [image]}])

        with monkeypatch.context() as patch, pictures.turns.of("other"):
            patch.setattr(leases, "BUILD_SECONDS_MAX", 0.2)
            waited = machine.lease()

        run.refresh_from_db()
        assert (waited.status_code, run.state) == (204, Run.State.QUEUED)
        assert machine.lease().status_code == 200

    def test_times_out_where_no_machine_comes(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        run = dispatch()
        assert run.deadline_at - run.created_at == timedelta(minutes=15)
        Run.objects.filter(id=run.id).update(deadline_at=database_now())

        reaper.reap()

        run.refresh_from_db()
        assert (run.state, error_code(run)) == ("FAILED", "RUN_TIMEOUT")
        assert machine.lease().status_code == 204
        assert_explained(simulator)


class TestChunks:
    def test_reach_those_who_watch(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        run = dispatch()
        lease = machine.lease().json()

        first = machine.tell("chunks", lease, text=" The", usage={"inputTokens": 7})
        machine.tell("chunks", lease, text=" sea\n")

        seen = RunChunk.objects.filter(run=run).order_by("seq")
        assert first.json()["cancelRequested"] is False
        assert [chunk.data["text"] for chunk in seen if chunk.kind == "delta"] == [" The", " sea\n"]
        assert [chunk.data["input_tokens"] for chunk in seen if chunk.kind == "usage"] == [7]
        assert [chunk.seq for chunk in seen] == [1, 2, 3, 4]

    def test_keep_their_order_where_they_come_at_once(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        run = dispatch()
        lease = machine.lease().json()

        def send(word: str) -> None:
            answer = Machine(machine.host, machine.headers["Authorization"][7:], {}).tell("chunks", lease, text=word)
            assert answer.status_code == 200, answer.content
            connections.close_all()

        senders = [threading.Thread(target=send, args=[word]) for word in "abcdef"]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()

        seqs = list(RunChunk.objects.filter(run=run).order_by("seq").values_list("seq", flat=True))
        assert seqs == [1, 2, 3, 4, 5, 6, 7]

    def test_of_an_older_lease_are_refused(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        run = dispatch()
        lease = machine.lease().json()
        Run.objects.filter(id=run.id).update(epoch=5)

        answer = machine.tell("chunks", lease, text="late")

        assert code_of(answer) == (409, "LEASE_LOST")
        assert not RunChunk.objects.filter(run=run, kind="delta").exists()


class TestHeartbeat:
    def test_keeps_the_lease(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        run = dispatch()
        lease = machine.lease().json()
        let_the_lease_run_out(run)

        answer = machine.tell("heartbeat", lease)
        reaper.reap()

        run.refresh_from_db()
        assert answer.json()["cancelRequested"] is False
        assert run.state == "RUNNING"
        assert run.lease_until is not None
        assert run.lease_until > database_now()

    def test_says_that_somebody_cancelled(self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]) -> None:
        run = dispatch()
        lease = machine.lease().json()
        message = machine.call(lease)
        machine.api.post(f"/api/v1/runs/{run.id}/cancel")

        beat = machine.tell("heartbeat", lease)
        done = machine.tell("finish", lease, **{**machine.report(message), "state": "CANCELLED"})

        line = CostEvent.objects.get()
        assert beat.json()["cancelRequested"] is True
        assert done.json()["state"] == "CANCELLED"
        assert done.json()["error"] is None
        assert done.json()["output"]["text"]
        assert (line.estimated, line.output_tokens >= message.usage.output_tokens) == (True, True)
        assert_explained(simulator)

    def test_says_to_stop_after_the_deadline_and_is_lost_soon_after(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        run = dispatch()
        lease = machine.lease().json()
        machine.call(lease)
        Run.objects.filter(id=run.id).update(deadline_at=database_now())

        beat = machine.tell("heartbeat", lease)
        Run.objects.filter(id=run.id).update(deadline_at=database_now() - 2 * claims.LEASE)
        later = machine.tell("heartbeat", lease)
        done = machine.tell("finish", lease, state="CANCELLED", sent=True, output={"text": "The sea"})

        assert beat.json()["cancelRequested"] is True
        assert code_of(later) == (409, "LEASE_LOST")
        assert (done.json()["state"], done.json()["error"]["code"]) == ("FAILED", "RUN_TIMEOUT")
        assert done.json()["cost"]["estimated"] is True
        assert_explained(simulator)


class TestFinish:
    def test_settles_a_call_that_the_hosts_account_paid(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        run = dispatch()
        lease = machine.lease().json()
        message = machine.call(lease)

        answer = machine.tell("finish", lease, **machine.report(message))

        line = CostEvent.objects.get()
        body = answer.json()
        assert (answer.status_code, body["state"], body["payer"]) == (200, "SUCCEEDED", "host-account")
        assert body["output"]["text"] == machine.report(message)["output"]["text"]
        assert body["usage"]["outputTokens"] == message.usage.output_tokens
        assert body["cost"]["billed"] is False
        assert float(body["cost"]["amountUsd"]) > 0
        assert (line.payer, line.auth_mode, line.billed) == ("host-account", "host-session", False)
        assert (line.credential_id, line.billing_class) == (machine.host.id, "host-session.anthropic")
        assert line.amount_picodollars == line.input_tokens * 4_000_000 + line.output_tokens * 20_000_000
        assert line.provider_request_id == machine.request_id
        assert run.attempts.get().state == "SETTLED"
        assert_explained(simulator)

    def test_said_again_changes_nothing_and_answers_the_same(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        dispatch()
        lease = machine.lease().json()
        report = machine.report(machine.call(lease))

        first = machine.tell("finish", lease, **report)
        second = machine.tell("finish", lease, **{**report, "usage": {"outputTokens": 999}})

        assert (first.status_code, first.json()) == (second.status_code, second.json())
        assert CostEvent.objects.count() == 1
        assert_explained(simulator)

    def test_without_usage_is_an_estimate(self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]) -> None:
        dispatch()
        lease = machine.lease().json()
        report = {**machine.report(machine.call(lease)), "usage": None}

        answer = machine.tell("finish", lease, **report)

        assert answer.json()["cost"]["estimated"] is True
        assert answer.json()["usage"]["outputTokens"] == len(report["output"]["text"]) // 4
        assert_explained(simulator)

    @pytest.mark.parametrize(
        ("code", "retryable", "words"),
        [("HOST_LOGIN_MISSING", False, "no working login"), ("HOST_PLAN_EXHAUSTED", True, "used up its plan")],
    )
    def test_of_a_call_that_was_never_sent_costs_nothing(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run], code: str, retryable: bool, words: str
    ) -> None:
        run = dispatch()
        lease = machine.lease().json()

        answer = machine.tell("finish", lease, state="FAILED", sent=False, error={"code": code, "fix": "Do this."})

        error = answer.json()["error"]
        assert answer.json()["state"] == "FAILED"
        assert (error["code"], error["retryable"], error["fix"]) == (code, retryable, "Do this.")
        assert words in error["detail"]
        assert machine.host.name in error["detail"]
        assert run.attempts.get().state == "VOID"
        assert not CostEvent.objects.exists()
        assert_explained(simulator)

    def test_cancelled_before_sending_costs_nothing(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        run = dispatch()
        lease = machine.lease().json()

        answer = machine.tell("finish", lease, state="CANCELLED", sent=False)

        assert (answer.json()["state"], run.attempts.get().state) == ("CANCELLED", "VOID")
        assert not CostEvent.objects.exists()
        assert_explained(simulator)

    def test_of_a_broken_stream_is_charged_by_what_was_seen(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        run = dispatch()
        lease = machine.lease().json()
        text = machine.report(machine.call(lease))["output"]["text"]

        answer = machine.tell(
            "finish", lease, state="FAILED", sent=True, output={"text": text}, error={"code": "PROVIDER_STREAM_BROKEN"}
        )

        line = CostEvent.objects.get()
        assert answer.json()["error"]["retryable"] is True
        assert (line.estimated, line.output_tokens) == (True, len(text) // 4)
        assert run.attempts.get().state == "SETTLED"
        assert_explained(simulator)

    def test_of_a_call_that_nobody_answered_is_indeterminate(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        run = dispatch()
        lease = machine.lease().json()
        report = {"state": "FAILED", "sent": True, "error": {"code": "PROVIDER_UNAVAILABLE"}}

        answers = [machine.tell("finish", lease, **report) for _ in range(2)]

        assert [answer.status_code for answer in answers] == [200, 200]
        assert run.attempts.get().state == "INDETERMINATE"
        assert CostEvent.objects.get().estimated
        assert_explained(simulator)

    @pytest.mark.parametrize(
        "report",
        [
            {"state": "SUCCEEDED", "sent": False},
            {"state": "SUCCEEDED", "sent": True, "error": {"code": "PROVIDER_REJECTED"}},
            {"state": "FAILED", "sent": True},
            {"state": "FAILED", "sent": True, "error": {"code": "INTERNAL"}},
            {"state": "RUNNING", "sent": True},
            {"state": "SUCCEEDED"},
            {"state": "SUCCEEDED", "sent": True, "usage": {"outputTokens": -1}},
            {"state": "SUCCEEDED", "sent": True, "usage": {"outputTokens": 10**12}},
            {"state": "SUCCEEDED", "sent": True, "output": {"content": ["text"]}},
            {"state": "SUCCEEDED", "sent": True, "apiKey": "there is no such field"},
        ],
    )
    def test_refuses_a_report_that_contradicts_itself(
        self, machine: Machine, dispatch: Callable[..., Run], report: dict[str, Any]
    ) -> None:
        run = dispatch()
        lease = machine.lease().json()

        answer = machine.tell("finish", lease, **report)

        run.refresh_from_db()
        assert code_of(answer) == (400, "VALIDATION_FAILED")
        assert run.state == "RUNNING"

    @pytest.mark.parametrize("verb", ["finish", "chunks"])
    @pytest.mark.parametrize(
        ("usage", "fields"),
        [
            ({"inputTokens": 1_000_001}, ["inputTokens"]),
            ({"cacheReadTokens": 1_000_001}, ["cacheReadTokens"]),
            ({"cacheWrite5mTokens": 1_000_001}, ["cacheWrite5mTokens"]),
            ({"cacheWrite1hTokens": 1_000_001}, ["cacheWrite1hTokens"]),
            ({"inputTokens": 600_000, "cacheReadTokens": 600_000}, ["inputTokens", "cacheReadTokens"]),
            ({"outputTokens": 128_001}, ["outputTokens"]),
            ({"outputTokens": 5, "thinkingTokens": 6}, ["thinkingTokens"]),
            ({"inputTokens": 10**9}, ["inputTokens"]),
            ({"inputTokens": 2**62}, ["inputTokens"]),
            ({"inputTokens": -1}, ["inputTokens"]),
        ],
    )
    def test_refuses_more_than_the_model_takes_or_gives(
        self, machine: Machine, dispatch: Callable[..., Run], verb: str, usage: dict[str, int], fields: list[str]
    ) -> None:
        run = dispatch()
        lease = machine.lease().json()
        said = {"state": "SUCCEEDED", "sent": True} if verb == "finish" else {"text": "Two"}

        answer = machine.tell(verb, lease, usage=usage, **said)

        run.refresh_from_db()
        assert code_of(answer) == (400, "VALIDATION_FAILED")
        assert [error["pointer"] for error in answer.json()["errors"]] == [f"/usage/{field}" for field in fields]
        assert (run.state, CostEvent.objects.count()) == ("RUNNING", 0)
        assert not run.chunks.filter(kind=RunChunk.Kind.USAGE).exists()

    def test_takes_as_much_as_the_model_takes_and_gives(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        dispatch()
        lease = machine.lease().json()
        usage = {"inputTokens": 400_000, "cacheReadTokens": 600_000, "outputTokens": 128_000, "thinkingTokens": 128_000}

        answer = machine.tell("finish", lease, state="SUCCEEDED", sent=True, usage=usage)

        assert answer.status_code == 200
        assert CostEvent.objects.get().cache_read_tokens == 600_000

    def test_takes_an_answer_larger_than_other_bodies(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        dispatch()
        lease = machine.lease().json()
        text = "word " * 300_000

        answer = machine.tell("finish", lease, state="SUCCEEDED", sent=True, output={"text": text})

        assert answer.json()["output"]["text"] == text

    def test_with_an_epoch_that_was_never_given_is_refused(
        self, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        run = dispatch()
        lease = machine.lease().json()

        answer = machine.tell("finish", {**lease, "epoch": 7}, state="SUCCEEDED", sent=True)

        run.refresh_from_db()
        assert code_of(answer) == (409, "LEASE_LOST")
        assert run.state == "RUNNING"


def told(model: str, usage: dict[str, Any]) -> dict[str, Any]:
    """A report of a whole answer, with what it tells of its model and its usage."""
    start = {**usage, "output_tokens": 1}
    return {
        "state": "SUCCEEDED",
        "sent": True,
        "output": {"text": "Two", "stopReason": "end_turn"},
        "usage": {"inputTokens": 7, "outputTokens": 7},
        "told": {"model": model, "reports": [start, usage]},
    }


class TestWhatAnAnswerTells:
    def test_makes_a_line_for_each_model_by_its_own_prices(
        self, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        dispatch()
        advised = {"type": "advisor_message", "model": HAIKU, "input_tokens": 5_000, "output_tokens": 600}
        own = {"input_tokens": 1_000, "output_tokens": 500, "inference_geo": "us"}
        usage = {**own, "iterations": [{"type": "message", **own}, advised]}

        answer = machine.tell("finish", machine.lease().json(), **told("claude-opus-5-5", usage))

        assert answer.status_code == 200, answer.json()
        lines = {line.served_model_id: line for line in CostEvent.objects.all()}
        assert (lines["claude-opus-5-5"].input_tokens, lines[HAIKU].input_tokens) == (1_000, 5_000)
        assert lines["claude-opus-5-5"].amount_picodollars == 11 * (1_000 * 4_000_000 + 500 * 20_000_000) // 10
        assert {(line.payer, line.billed) for line in lines.values()} == {("host-account", False)}
        assert answer.json()["usage"]["inputTokens"] == 6_000
        assert list(audit.differences()) == []

    def test_charges_searches_and_flags_what_is_not_known(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        dispatch()
        usage = {"input_tokens": 9, "output_tokens": 9, "server_tool_use": {"web_search_requests": 2}, "x_tokens": 5}

        machine.tell("finish", machine.lease().json(), **told("claude-opus-5-5", usage))

        line = CostEvent.objects.get()
        assert (line.web_search_requests, line.output_tokens, line.estimated) == (2, 14, True)

    def test_shows_which_model_an_own_entry_is_and_the_next_run_is_refused(
        self, machine: Machine, make_profile: Callable[..., Any], ada_access: Access
    ) -> None:
        CatalogEntry.objects.create(
            org=ada_access.org, provider="claude", model_id="acme-1", auth_modes=["host-session"]
        )
        make_profile(name="own", model_id="acme-1", auth_modes=["host-session"])
        policies.set_policy(ada_access, matrix={HAIKU: {"host-session": {"allowed": False}}})
        asked = {"profileId": "prof_own", "input": ASKED}

        first = machine.api.post("/api/v1/runs", asked)
        machine.tell("finish", machine.lease().json(), **told(HAIKU, {"input_tokens": 9, "output_tokens": 9}))
        second = machine.api.post("/api/v1/runs", asked)

        assert first.status_code == 202, first.json()
        assert CostEvent.objects.get().served_model_id == HAIKU
        assert (second.status_code, second.json()["code"]) == (403, "MODEL_NOT_ALLOWED_BY_POLICY")
        assert AuditEvent.objects.get(action="catalog_entry.blocked").detail["answeredBy"] == HAIKU

    def test_decides_nothing_about_a_model_of_the_platform(
        self, machine: Machine, dispatch: Callable[..., Run], ada_access: Access
    ) -> None:
        policies.set_policy(ada_access, matrix={HAIKU: {"host-session": {"allowed": False}}})
        dispatch()

        machine.tell("finish", machine.lease().json(), **told(HAIKU, {"input_tokens": 9, "output_tokens": 9}))

        assert CostEvent.objects.get().served_model_id == HAIKU
        assert not AuditEvent.objects.filter(action="catalog_entry.blocked").exists()
        assert dispatch().state == Run.State.QUEUED

    @pytest.mark.parametrize(
        "usage",
        [{"input_tokens": 200_001, "output_tokens": 1}, {"input_tokens": 1, "output_tokens": 64_001}],
        ids=["input", "output"],
    )
    def test_is_refused_where_its_model_takes_or_gives_less(
        self, machine: Machine, dispatch: Callable[..., Run], usage: dict[str, Any]
    ) -> None:
        dispatch(maxTokens=1_000)

        answer = machine.tell("finish", machine.lease().json(), **told(HAIKU, usage))

        assert code_of(answer) == (400, "VALIDATION_FAILED")
        assert {error["pointer"] for error in answer.json()["errors"]} == {"/told/reports"}
        assert not CostEvent.objects.exists()

    @pytest.mark.parametrize("reports", [[{}] * 17, ["text"], {"input_tokens": 1}])
    def test_has_few_reports_which_are_objects(
        self, machine: Machine, dispatch: Callable[..., Run], reports: Any
    ) -> None:
        dispatch()

        answer = machine.tell(
            "finish", machine.lease().json(), **{**told("m", {}), "told": {"model": "m", "reports": reports}}
        )

        assert code_of(answer) == (400, "VALIDATION_FAILED")

    def test_of_a_broken_stream_is_charged_with_what_was_seen_besides(
        self, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        dispatch()
        report = told("claude-opus-5-5", {"input_tokens": 500})
        report["told"]["reports"].pop()
        failed = {"state": "FAILED", "error": {"code": "PROVIDER_STREAM_BROKEN"}, "output": {"text": "word " * 40}}

        machine.tell("finish", machine.lease().json(), **{**report, **failed})

        line = CostEvent.objects.get()
        assert (line.input_tokens, line.output_tokens, line.estimated) == (500, 50, True)


class TestAMachineThatDies:
    def test_leaves_an_estimate_that_is_not_billed(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        run = dispatch()
        lease = machine.lease().json()
        machine.call(lease)
        machine.tell("chunks", lease, text="The sea", usage={"inputTokens": 12})
        let_the_lease_run_out(run)

        reaper.reap()

        run.refresh_from_db()
        line = CostEvent.objects.get()
        assert (run.state, error_code(run), run.output_text) == ("FAILED", "RUN_INTERRUPTED", "The sea")
        assert (line.estimated, line.billed, line.input_tokens) == (True, False, 12)
        assert run.attempts.get().state == "INDETERMINATE"
        assert_explained(simulator)

    def test_and_comes_back_late_settles_by_one_adjustment(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        run = dispatch()
        lease = machine.lease().json()
        message = machine.call(lease)
        let_the_lease_run_out(run)
        reaper.reap()

        beat = machine.tell("heartbeat", lease)
        chunk = machine.tell("chunks", lease, text="late")
        finishes = [machine.tell("finish", lease, **machine.report(message)) for _ in range(2)]

        run.refresh_from_db()
        assert [code_of(answer) for answer in (beat, chunk, *finishes)] == [(409, "LEASE_LOST")] * 4
        assert finishes[0].json()["run"]["state"] == "FAILED"
        assert finishes[0].json()["run"]["usage"]["outputTokens"] == message.usage.output_tokens
        assert [line.kind for line in CostEvent.objects.order_by("id")] == ["charge", "adjustment"]
        assert run.attempts.get().state == "SETTLED"
        assert (run.state, error_code(run), run.estimated) == ("FAILED", "RUN_INTERRUPTED", False)
        assert_explained(simulator)

    def test_after_a_cancellation_ends_cancelled(
        self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]
    ) -> None:
        run = dispatch()
        lease = machine.lease().json()
        machine.call(lease)
        machine.api.post(f"/api/v1/runs/{run.id}/cancel")
        let_the_lease_run_out(run)

        reaper.reap()

        run.refresh_from_db()
        assert (run.state, run.error) == ("CANCELLED", None)
        assert_explained(simulator)

    def test_is_not_called_again(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        run = dispatch()
        machine.lease()
        let_the_lease_run_out(run)
        reaper.reap()

        assert machine.lease().status_code == 204


class TestTheMachinesKey:
    def test_never_reaches_the_server(self, simulator: Any, machine: Machine, dispatch: Callable[..., Run]) -> None:
        dispatch()
        key = machine.environment["ANTHROPIC_API_KEY"]

        assert machine.carry_out().status_code == 200

        assert key not in everything_stored()
        assert machine.host.id in everything_stored()

    def test_would_be_found_if_it_did(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        key = machine.environment["ANTHROPIC_API_KEY"]

        dispatch(metadata={"leak": key})

        assert key in everything_stored()

    def test_is_blotted_out_of_a_faults_own_words(self, machine: Machine, dispatch: Callable[..., Run]) -> None:
        dispatch()
        lease = machine.lease().json()
        key = machine.environment["ANTHROPIC_API_KEY"]
        error = {"code": "PROVIDER_AUTH_FAILED", "detail": f"Bad key {key}.", "fix": f"Replace {key}."}

        answer = machine.tell("finish", lease, state="FAILED", sent=True, error=error)

        assert answer.json()["error"]["detail"].startswith("Bad key sk-ant-api03-***")
        assert key not in everything_stored()
