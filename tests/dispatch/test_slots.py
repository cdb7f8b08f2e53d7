"""The slots of pools: how many runs of a pool execute at once, and what becomes of those that wait for one."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.test import Client

from billing.models import CostEvent
from integrations.keys import services as integrations
from integrations.models import Integration
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.core.models import WorkerHeartbeat
from rensei.core.secret import Secret
from rensei.dispatch import run_tokens, services
from rensei.dispatch.execution import reaper
from rensei.dispatch.models import CapacityPool, Run, Sandbox
from rensei.dispatch.queue import claims
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project, User
from tests.dispatch.test_fair_order import end, organization, wait_in_line

pytestmark = pytest.mark.django_db(transaction=True)


def wait_for_sandbox(org: Org, pool: str, count: int = 1, *, project: Project | None = None) -> list[str]:
    ids = wait_in_line(org, count, project=project)
    Run.objects.filter(id__in=ids).update(pool=pool, in_sandbox=True)
    return ids


def claim(owner: str = "a-worker") -> Run | None:
    found = claims.claim_next_for_sandbox(owner=owner)
    return None if found is None else found.run


def begin(run: Run, *, provider_id: str = "sandbox") -> Sandbox:
    """Write the row of its sandbox, as its worker does."""
    issued = run_tokens.issue(run, provider_id=provider_id, request=b"{}")
    assert issued is not None
    return issued[0]


@pytest.fixture
def small(ada_access: Access) -> CapacityPool:
    return services.create_pool(ada_access, name="small", provider_id="sandbox", config={"slots": 2})


class TestAClaim:
    def test_takes_no_more_than_the_slots(self, small: CapacityPool, acme: Org) -> None:
        wait_for_sandbox(acme, "small", 4)

        first, second, third = claim(), claim(), claim()
        assert first is not None
        assert second is not None
        assert third is None
        box = begin(first)
        assert claim() is None
        # The run has ended, and its sandbox has not.
        end(first)
        assert claim() is None
        Sandbox.objects.filter(id=box.id).update(ended_at=database_now())
        assert claim() is not None
        assert claim() is None

    def test_passes_over_full_pools_only(self, small: CapacityPool, acme: Org) -> None:
        other = organization("other")
        wait_for_sandbox(acme, "small", 3)
        elsewhere = wait_for_sandbox(acme, "sandbox")
        wait_for_sandbox(other, "small")
        claimed = [claim() for _ in range(5)]

        names = [(run.org.slug, run.pool) if run else None for run in claimed]
        assert sorted(name for name in names if name) == [
            ("acme", "sandbox"),
            ("acme", "small"),
            ("acme", "small"),
            ("other", "small"),
        ]
        assert names[-1] is None
        assert Run.objects.get(id=elsewhere[0]).state == Run.State.RUNNING

    def test_gives_the_slots_to_projects_in_turn(self, acme: Org, ada_access: Access) -> None:
        services.create_pool(ada_access, name="one", provider_id="sandbox", config={"slots": 1})
        first, second = (Project.objects.create(org=acme, slug=slug, name=slug) for slug in ("first", "second"))
        wait_for_sandbox(acme, "one", 2, project=first)
        wait_for_sandbox(acme, "one", 2, project=second)

        seen = []
        while (run := claim()) is not None:
            seen.append(run.project_id)
            end(run)

        assert seen == [first.pk, second.pk, first.pk, second.pk]

    def test_has_the_number_of_the_server_where_the_pool_names_none(self, acme: Org, settings: Any) -> None:
        settings.RENSEI_POOL_SLOTS = 1
        wait_for_sandbox(acme, "sandbox", 2)

        assert claim() is not None
        assert claim() is None

    def test_holds_when_two_workers_claim_at_once(self, small: CapacityPool, acme: Org) -> None:
        wait_for_sandbox(acme, "small", 8)
        together, claimed = threading.Barrier(2), []

        def work(owner: str) -> None:
            together.wait(timeout=10)
            try:
                # A worker that finds the organization locked looks again.
                claimed.extend([claim(owner) for _ in range(6)])
            finally:
                connections.close_all()

        threads = [threading.Thread(target=work, args=[name]) for name in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len([run for run in claimed if run]) == 2

    def test_counts_a_sandbox_that_was_left_until_its_provider_has_ended_it(self, acme: Org, settings: Any) -> None:
        settings.RENSEI_POOL_SLOTS = 1
        wait_for_sandbox(acme, "e2b", 2)
        run = claim()
        assert run is not None
        begin(run, provider_id="e2b")
        Run.objects.filter(id=run.id).update(state=Run.State.FAILED, deadline_at=database_now())
        assert claim() is None

        Run.objects.filter(id=run.id).update(deadline_at=database_now() - timedelta(seconds=61))

        assert claim() is not None


class TestARunThatWaits:
    @pytest.fixture
    def waiting(self, small: CapacityPool, acme: Org, ada: User) -> Run:
        wait_for_sandbox(acme, "small", 2)
        claim()
        claim()
        (run_id,) = wait_for_sandbox(acme, "small")
        Run.objects.filter(id=run_id).update(created_by=ada)
        return Run.objects.get(id=run_id)

    def test_says_so(self, waiting: Run, ada: User, api_as: Any, client: Client) -> None:
        api = api_as(ada)
        client.force_login(ada)
        said = "All 2 slots of the pool 'small' are taken."

        assert api.get(f"/api/v1/runs/{waiting.id}").json()["waitsFor"] == said
        page = client.get(f"/o/acme/runs/{waiting.id}").content.decode()
        assert "All 2 slots of the pool &#x27;small&#x27; are taken." in page
        Run.objects.filter(state=Run.State.RUNNING).first().delete()  # type: ignore[union-attr]
        assert api.get(f"/api/v1/runs/{waiting.id}").json()["waitsFor"] is None

    def test_ends_after_a_time_and_has_cost_nothing(self, waiting: Run, settings: Any) -> None:
        reaper.reap()
        waiting.refresh_from_db()
        assert waiting.state == Run.State.QUEUED

        settings.RENSEI_POOL_WAIT_SECONDS = 0
        reaper.reap()

        waiting.refresh_from_db()
        assert (waiting.state, waiting.error["code"]) == (Run.State.FAILED, "POOL_FULL")  # type: ignore[index]
        assert waiting.error["detail"].startswith("All 2 slots of the pool 'small' are taken.")  # type: ignore[index]
        assert (waiting.attempt_count, CostEvent.objects.exists()) == (0, False)
        assert Run.objects.filter(state=Run.State.RUNNING).count() == 2

    def test_is_not_ended_where_a_slot_is_free(self, waiting: Run, settings: Any) -> None:
        settings.RENSEI_POOL_WAIT_SECONDS = 0
        Run.objects.filter(state=Run.State.RUNNING).first().delete()  # type: ignore[union-attr]

        reaper.reap()

        waiting.refresh_from_db()
        assert waiting.state == Run.State.QUEUED


class TestTheState:
    @pytest.fixture
    def states(self, ada: User, api_as: Any) -> Callable[[], dict[str, tuple[str, str | None, str | None]]]:
        def read() -> dict[str, tuple[str, str | None, str | None]]:
            found = api_as(ada).get("/api/v1/pools").json()["results"]
            return {pool["name"]: (pool["state"], pool["reason"], pool["fix"]) for pool in found}

        return read

    def test_is_full_while_all_slots_are_taken(self, small: CapacityPool, acme: Org, states: Any) -> None:
        WorkerHeartbeat.objects.create(worker="w", seen_at=database_now(), offers_sandboxes=True)
        assert states()["small"] == ("active", None, None)
        wait_for_sandbox(acme, "small", 3)
        claim()
        claim()

        state, reason, fix = states()["small"]

        assert (state, reason) == ("full", "All 2 slots of the pool 'small' are taken.")
        assert "more slots" in fix

    def test_fails_with_its_credential(
        self, ada_access: Access, ada: User, api_as: Any, states: Any, settings: Any, client: Client
    ) -> None:
        settings.PUBLIC_URL = "https://rensei.example.com"
        key = integrations.add_integration(ada_access, provider="e2b", api_key=Secret(f"e2b_{'a' * 40}"))
        pool = services.create_pool(ada_access, name="cloud", provider_id="e2b", config={"slots": 7})
        Integration.objects.filter(id=key.id).update(
            status="failing", last_error={"code": "KEY_REJECTED", "detail": "E2B does not accept this key.", "fix": ""}
        )

        state, reason, fix = states()["cloud"]

        assert (state, reason) == ("credential-failing", f"The key '{key.name}' fails: E2B does not accept this key.")
        assert fix == "Test the key under Integrations, and rotate it."
        assert api_as(ada).get(f"/api/v1/pools/{pool.id}").json()["slots"] == 7
        client.force_login(ada)
        for page in ("/o/acme/settings/capacity", f"/o/acme/settings/capacity/{pool.id}"):
            assert "E2B does not accept this key." in client.get(page).content.decode()


class TestTheDefaultOfAProject:
    @pytest.fixture
    def project(self, acme: Org) -> Project:
        return Project.objects.create(org=acme, slug="my-project", name="Mine")

    def test_is_the_pool_of_its_runs_that_name_none(
        self, project: Project, ada: User, api_as: Any, connected: Any, make_profile: Any
    ) -> None:
        make_profile(auth_modes=["byok"])
        WorkerHeartbeat.objects.create(worker="w", seen_at=database_now(), offers_sandboxes=True)
        api = api_as(ada)
        body = {"profileId": "prof_deep", "input": "Hi.", "projectId": "my-project"}

        def pool_of(**more: str) -> str:
            answer = api.post("/api/v1/runs", {**body, **more})
            return str(answer.json()["pool"])

        before = pool_of()
        assert api.put("/api/v1/projects/my-project/pool", {"pool": "sandbox"}).json() == {"pool": "sandbox"}

        assert (before, pool_of(), pool_of(pool="local")) == ("local", "sandbox", "local")
        assert api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).json()["pool"] == "local"
        assert api.get("/api/v1/projects/my-project").json()["pool"] == "sandbox"
        assert api.post("/api/v1/why", body).json()["pool"] == "sandbox"
        assert AuditEvent.objects.filter(action="project.pool_set", object_id="my-project").count() == 1
        assert api.put("/api/v1/projects/my-project/pool", {"pool": None}).json() == {"pool": None}
        assert pool_of() == "local"

    def test_is_a_pool_of_the_organization(self, project: Project, ada: User, api_as: Any) -> None:
        for body, status in (({"pool": "none"}, 409), ({"pool": ""}, 400), ({}, 400), ({"pool": 3}, 400)):
            assert api_as(ada).put("/api/v1/projects/my-project/pool", body).status_code == status
        project.refresh_from_db()
        assert project.pool == ""

    def test_keeps_its_pool_from_being_deleted(
        self, project: Project, small: CapacityPool, ada: User, ada_access: Access, api_as: Any
    ) -> None:
        api = api_as(ada)
        services.set_project_pool(ada_access, project, pool="small")

        refused = api.delete(f"/api/v1/pools/{small.id}")

        assert (refused.status_code, refused.json()["code"]) == (409, "IN_USE")
        assert "'my-project'" in refused.json()["detail"]
        services.set_project_pool(ada_access, project, pool=None)
        assert api.delete(f"/api/v1/pools/{small.id}").status_code == 204

    def test_is_set_on_its_page(self, project: Project, small: CapacityPool, ada: User, client: Client) -> None:
        client.force_login(ada)
        page = "/o/acme/settings/projects/my-project/rename"

        assert "small" in client.get(page).content.decode()
        assert client.post(page, {"name": "Mine", "pool": "small"}).status_code == 302
        assert client.post(page, {"name": "Mine", "pool": "none"}).status_code == 422

        project.refresh_from_db()
        assert (project.name, project.pool) == ("Mine", "small")
        assert "runs on small" in client.get("/o/acme/settings/projects").content.decode()
