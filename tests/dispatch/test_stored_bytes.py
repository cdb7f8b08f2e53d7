"""What runs, workflows and profiles store is counted, bounded and let go of, through every end and every fault."""

import base64
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from PIL import Image
from rest_framework.test import APIClient

from billing.models import CostEvent, Entitlement, SharedUsage
from integrations.keys import platform
from rensei import worker
from rensei.core.clock import database_now
from rensei.core.limits import MIB
from rensei.core.secret import Secret
from rensei.dispatch import retention, stored_bytes
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import reaper
from rensei.dispatch.models import Attempt, IdempotencyKey, Run, RunChunk, RunInput
from rensei.dispatch.queue import claims
from rensei.orgs import services as orgs
from rensei.orgs import storage
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project, StoredBytes, User
from rensei.orgs.storage import StorageLimitReached
from rensei.workflows.models import Workflow, WorkflowRun
from tests.attacks import sized
from tests.dispatch.dying_worker import plant_death
from tests.dispatch.reconcile import assert_explained
from tests.dispatch.test_leases import Machine, machine, make_machine
from tests.dispatch.test_leases import dispatch as dispatch_to_machine
from tests.dying import die_at

pytestmark = pytest.mark.django_db(transaction=True)

__all__ = ["dispatch_to_machine", "machine", "make_machine"]

DOCUMENT = """
name: Sums
nodes:
  - nodeId: one
    nodeType: action/llm.inference
    config: {profileId: prof_deep, prompt: "[[reply 5 words]] {{ input }}"}
"""


@pytest.fixture
def ready(simulator: Any, connect: Any, make_profile: Any) -> Any:
    connect()
    make_profile(max_tokens=1000, effort="low")
    return simulator


@pytest.fixture
def dispatch(ada_access: Access) -> Callable[..., Run]:
    def send(text: str = "Hi.", **fields: Any) -> Run:
        request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text=text, messages=None))
        return admit.dispatch(ada_access, request, **fields)

    return send


def counted(slug: str = "acme") -> tuple[int, int]:
    row = StoredBytes.objects.get(org__slug=slug)
    return row.used, row.held


def leave(room: int, slug: str = "acme") -> None:
    """Leave an organization so many bytes, by what is counted beside what it stores."""
    row = StoredBytes.objects.get(org__slug=slug)
    limit = (row.used + row.held + room) // MIB + 1
    StoredBytes.objects.filter(pk=row.pk).update(limit_mib=limit, used=limit * MIB - row.held - room)


def assert_all_is_counted() -> None:
    assert worker.count_stored_bytes() == {}


@pytest.fixture
def shared_profile(ada_access: Access, make_profile: Any, make_key: Any) -> None:
    """A profile whose runs the platform pays for."""
    platform.add_platform_key(
        actor=None, provider="claude", pool="shared", name="one", api_key=Secret(make_key()),
        model_ids=["claude-opus-5-5"], max_tokens_cap=1000,
    )  # fmt: skip
    make_profile(auth_modes=["shared"])


class TestARun:
    def test_counts_its_input_at_its_dispatch_and_its_answer_at_its_end(
        self, ready: Any, dispatch: Any, work: Any
    ) -> None:
        before = counted()

        run = dispatch("[[reply 300 words]] " + "word " * 2000)
        admitted = counted()
        (ended,) = work()

        assert admitted[0] - before[0] == run.stored_bytes > 10_000
        assert admitted[1] == stored_bytes.held(run) > len(ended.output_text) * 3
        chunks = sum(stored_bytes.of_event(data) for data in RunChunk.objects.values_list("data", flat=True))
        texts = storage.size_of(ended.output_text, ended.output_content)
        assert counted() == (admitted[0] + ended.stored_bytes - run.stored_bytes, 0)
        assert texts + chunks - 200 < ended.stored_bytes - run.stored_bytes < texts + chunks + 1000
        assert_explained(ready)

    def test_is_refused_without_a_trace_where_its_input_does_not_fit(
        self, ready: Any, dispatch: Any, ada: User, api_as: Callable[..., APIClient]
    ) -> None:
        leave(100_000)
        before = counted()
        body = {"profileId": "prof_deep", "input": "word " * 50_000}

        answer = api_as(ada).post("/api/v1/runs", body, headers={"Idempotency-Key": "once"})

        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["retryable"]) == (403, "STORAGE_LIMIT_REACHED", False)
        assert problem["usedBytes"] + problem["heldBytes"] + 100_000 == problem["limitBytes"]
        for model in (Run, RunInput, Attempt, CostEvent, IdempotencyKey):
            assert not model.objects.exists(), model
        assert counted() == before
        assert ready.requests() == []

    def test_costs_no_quota_where_it_is_refused(
        self, ada_access: Access, shared_profile: None, dispatch: Any, simulator: Any
    ) -> None:
        leave(1000)

        with pytest.raises(StorageLimitReached):
            dispatch()

        assert not SharedUsage.objects.exists()

    def test_gives_its_room_back_where_something_else_refuses_it(
        self, ada_access: Access, shared_profile: None, dispatch: Any, simulator: Any
    ) -> None:
        Entitlement.objects.filter(org=ada_access.org).update(shared_runs_per_day=1)
        dispatch()
        before = counted()

        with pytest.raises(Exception, match="1 of its 1 shared runs"):
            dispatch()

        assert counted() == before
        assert_all_is_counted()

    def test_that_was_admitted_is_paid_and_kept_whatever_was_filled_since(
        self, ready: Any, dispatch: Any, work: Any
    ) -> None:
        dispatch("[[reply 300 words]] Tell me of the sea.")
        leave(0)

        (run,) = work()
        with pytest.raises(StorageLimitReached):
            dispatch()

        assert run.state == Run.State.SUCCEEDED
        assert len(run.output_text.split()) == 300
        assert CostEvent.objects.get().run_id == run.id

    def test_of_two_at_once_takes_the_last_room(self, ready: Any, dispatch: Any, ada_access: Access) -> None:
        one = dispatch()
        leave(one.stored_bytes + stored_bytes.held(one) + 100)
        both = threading.Barrier(2)

        def contend(_: int) -> bool:
            try:
                both.wait()
                dispatch()
            except StorageLimitReached:
                return False
            finally:
                connection.close()
            return True

        with ThreadPoolExecutor(2) as pool:
            let_in = sorted(pool.map(contend, range(2)))

        assert let_in == [False, True]
        assert Run.objects.count() == 2

    @pytest.mark.parametrize("point", ["mid-stream", "before-the-settlement-commits", "after-the-settlement"])
    def test_whose_worker_is_killed_is_counted_once(self, ready: Any, dispatch: Any, work: Any, point: str) -> None:
        dispatch("[[reply 60 words]] Tell me of the sea. [[slow 0.01]]")

        die_at(point, plant=plant_death)
        assert_all_is_counted()
        Run.objects.filter(state=Run.State.RUNNING).update(lease_until=database_now() - claims.LEASE)
        reaper.reap()
        work()

        assert counted()[1] == 0
        assert_explained(ready)

    def test_that_is_cancelled_or_too_late_lets_go_of_what_it_held(
        self, ready: Any, dispatch: Any, ada: User, api_as: Callable[..., APIClient]
    ) -> None:
        cancelled, late = dispatch(), dispatch()

        assert api_as(ada).post(f"/api/v1/runs/{cancelled.id}/cancel").status_code == 200
        Run.objects.filter(id=late.id).update(deadline_at=database_now() - timedelta(seconds=1))
        reaper.reap()

        assert counted()[1] == 0
        assert_all_is_counted()

    def test_leaves_its_images_after_their_retention(
        self, ready: Any, ada: User, api_as: Callable[..., APIClient], work: Any
    ) -> None:
        picture = io.BytesIO()
        Image.effect_noise((200, 200), 90).save(picture, "PNG")
        data = base64.b64encode(picture.getvalue()).decode()
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
        body = {"profileId": "prof_deep", "messages": [{"role": "user", "content": [image]}]}
        assert api_as(ada).post("/api/v1/runs", body).status_code == 202
        (run,) = work()
        before = counted()
        Run.objects.update(finished_at=database_now() - timedelta(days=30))

        retention.drop_old_images()

        run.refresh_from_db()
        assert len(data) - 500 < before[0] - counted()[0] <= len(data) + 500
        assert_all_is_counted()

    def test_of_another_organization_is_not_concerned(
        self, ready: Any, eve: User, access_of: Any, dispatch: Any, work: Any
    ) -> None:
        StoredBytes.objects.filter(org__slug="evil").update(limit_mib=0)

        dispatch()

        assert work()[0].state == Run.State.SUCCEEDED
        assert counted("evil") == (0, 0)


class TestAMachine:
    """A machine of a member sends what it likes, for as long as its run lives."""

    def test_cannot_fill_the_disk_with_events(
        self, machine: Machine, dispatch_to_machine: Callable[..., Run], ada: User
    ) -> None:
        run = dispatch_to_machine(maxTokens=1000)
        most = stored_bytes.of_answer_at_most(run)
        lease = machine.lease().json()

        for _ in range(sized(8, 200)):
            answer = machine.tell("chunks", lease, text="x" * 10_000)
            assert answer.status_code == 200, answer.json()

        run.refresh_from_db()
        stored = sum(len(data.get("text", "")) for data in RunChunk.objects.values_list("data", flat=True))
        assert 10_000 <= stored <= run.event_bytes <= most
        finished = machine.tell("finish", lease, state="SUCCEEDED", sent=True, output={"text": "x" * 20_000})
        assert finished.status_code == 200, finished.json()
        assert counted()[1] == 0
        assert_all_is_counted()

    def test_cannot_report_an_answer_that_its_tokens_do_not_make(
        self, machine: Machine, dispatch_to_machine: Callable[..., Run]
    ) -> None:
        run = dispatch_to_machine(maxTokens=1000)
        lease = machine.lease().json()
        text = "x" * (stored_bytes.of_report_at_most(run) + 1)

        answer = machine.tell("finish", lease, state="SUCCEEDED", sent=True, output={"text": text})

        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/output")
        run.refresh_from_db()
        assert run.state == Run.State.RUNNING


@pytest.mark.attack
class TestAnAttack:
    """A member dispatches the largest inputs, one after the other, as fast as the server takes them."""

    def test_stops_at_the_limit_and_leaves_others_alone(
        self, ready: Any, ada: User, eve: User, api_as: Callable[..., APIClient]
    ) -> None:
        limit = sized(4, 200)
        size = sized(MIB // 4, 10 * MIB)
        StoredBytes.objects.filter(org__slug="acme").update(limit_mib=limit)
        api = api_as(ada)
        body = {"profileId": "prof_deep", "input": "x" * size, "contextWindowTokens": None}
        body.pop("contextWindowTokens")

        codes = [api.post("/api/v1/runs", body).status_code for _ in range(limit * MIB // size + 2)]

        stored = sum(storage.size_of(given) for given in RunInput.objects.values_list("body", flat=True))
        assert set(codes) == {202, 403}
        assert codes == sorted(codes)
        assert stored <= sum(counted()) <= limit * MIB
        assert api_as(eve, "evil").post("/api/v1/projects", {"name": "Mine", "id": "mine"}).status_code == 201
        assert counted("evil") == (0, 0)


class TestWorkflows:
    def test_count_their_documents_and_inputs_and_let_go_of_them(
        self, ready: Any, ada: User, api_as: Callable[..., APIClient], work: Any
    ) -> None:
        api = api_as(ada)
        nothing = counted()
        applied = api.post("/api/v1/workflows", {"document": DOCUMENT})
        assert applied.status_code == 201, applied.json()
        once = counted()
        api.post("/api/v1/workflows", {"document": DOCUMENT})
        assert counted() == once
        started = api.post(f"/api/v1/workflows/{applied.json()['id']}/runs", {"input": "word " * 1000})
        assert started.status_code == 202, started.json()
        work()

        runs = sum(Run.objects.values_list("stored_bytes", flat=True))
        assert once[0] - nothing[0] > len(DOCUMENT)
        assert counted()[0] - once[0] - runs > 5000
        assert_all_is_counted()
        assert api.delete(f"/api/v1/workflows/{applied.json()['id']}").status_code == 204
        assert counted() == (nothing[0] + runs, 0)
        assert_all_is_counted()

    def test_are_refused_without_room(self, ready: Any, ada: User, api_as: Callable[..., APIClient]) -> None:
        api = api_as(ada)
        applied = api.post("/api/v1/workflows", {"document": DOCUMENT})
        leave(1000)

        started = api.post(f"/api/v1/workflows/{applied.json()['id']}/runs", {"input": "word " * 1000})
        other = api.post("/api/v1/workflows", {"document": DOCUMENT.replace("Sums", "Others")})

        assert [(answer.status_code, answer.json()["code"]) for answer in (started, other)] == [
            (403, "STORAGE_LIMIT_REACHED")
        ] * 2
        assert not WorkflowRun.objects.exists()
        assert Workflow.objects.count() == 1

    def test_of_a_project_are_let_go_of_with_it(
        self, ready: Any, ada_access: Access, project: Project, ada: User, api_as: Callable[..., APIClient],
        make_profile: Any,
    ) -> None:  # fmt: skip
        before = counted()
        make_profile(name="own", scope="project", project=project, system="Be brief. " * 100)
        api = api_as(ada)
        assert api.post("/api/v1/workflows", {"document": DOCUMENT, "projectId": project.slug}).status_code == 201
        assert counted() > before

        orgs.delete_project(ada_access, project)

        assert counted() == before
        assert_all_is_counted()


class TestProfiles:
    def test_count_what_they_hold(self, ada: User, ada_access: Access, make_profile: Any, api_as: Any) -> None:
        profile = make_profile(system="word " * 1000)
        api, made = api_as(ada), counted()
        assert made[0] > 5000

        assert api.patch("/api/v1/profiles/prof_deep", {"system": "word " * 3000}).status_code == 200
        larger = counted()
        leave(1000)
        refused = api.patch("/api/v1/profiles/prof_deep", {"system": "word " * 9000})
        assert api.patch("/api/v1/profiles/prof_deep", {"system": ""}).status_code == 200
        assert api.delete("/api/v1/profiles/prof_deep").status_code == 204

        assert larger[0] - made[0] == 10_000
        assert refused.json()["code"] == "STORAGE_LIMIT_REACHED"
        worker.count_stored_bytes()
        assert counted() == (0, 0)
        assert profile.pk


class TestMembers:
    def test_read_what_is_stored(
        self, ready: Any, dispatch: Any, ada: User, acme: Org, api_as: Any, page_as: Callable[[User], Client]
    ) -> None:
        dispatch()
        used, held = counted()

        answer = api_as(ada).get("/api/v1/entitlements").json()
        page = page_as(ada).get("/o/acme/usage").content.decode()

        assert answer["storage"] == {"usedBytes": used, "heldBytes": held, "limitBytes": 102_400 * MIB}
        assert "100.0\xa0GB" in page

    def test_are_told_beforehand(self, ready: Any, ada: User, api_as: Any, dispatch: Any) -> None:
        leave(0)

        told = api_as(ada).post("/api/v1/profiles/prof_deep/resolve", {"input": "Hi."}).json()

        assert (told["wouldRun"], told["code"]) == (False, "STORAGE_LIMIT_REACHED")
