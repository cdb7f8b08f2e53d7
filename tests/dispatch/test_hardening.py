"""Defects that a review found, each provoked."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.backends.signals import connection_created
from rest_framework.test import APIClient

from billing.models import Entitlement
from integrations.keys import platform
from integrations.models import PlatformKey
from rensei.core.secret import Secret
from rensei.dispatch import retention
from rensei.dispatch.api import long_polling
from rensei.dispatch.execution import execute, lease_renewal
from rensei.dispatch.execution.lease_renewal import LeaseRenewal, LiveRun
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.queue import claims
from rensei.dispatch.queue.claims import Stop
from rensei.dispatch.settlement import settle
from rensei.orgs.models import Project, User
from tests.dispatch.reconcile import assert_explained

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def api(ada: User, ada_access: Any, api_as: Callable[..., APIClient]) -> APIClient:
    return api_as(ada)


class TestSettling:
    def test_waits_for_a_database_that_is_away_at_the_end_of_a_call(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any, work: Any, monkeypatch: Any
    ) -> None:
        connect()
        make_profile()
        api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})
        now, away = execute.database_now, iter([True, True])

        def clock() -> Any:
            if Attempt.objects.filter(state=Attempt.State.OPEN).exists() and next(away, False):
                raise OperationalError("the database is away")
            return now()

        monkeypatch.setattr(execute, "database_now", clock)

        (run,) = work()

        assert run.state == Run.State.SUCCEEDED
        assert run.output_text
        assert_explained(simulator)

    def test_happens_even_if_the_next_key_cannot_be_opened(
        self, simulator: Any, api: APIClient, ada_access: Any, make_profile: Any, make_key: Any, work: Any
    ) -> None:
        for word, weight in (("revoked", 30_000), ("", 1)):
            platform.add_platform_key(
                actor=None,
                provider="claude",
                pool="metered",
                name=word or "good",
                api_key=Secret(make_key(word)),
                weight=weight,
            )
        PlatformKey.objects.filter(name="good").update(sealed_key=b"garbage")
        Entitlement.objects.filter(org=ada_access.org).update(metered_enabled=True)
        make_profile(auth_modes=["metered"])
        api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."})

        (run,) = work()

        assert (run.state, run.error["code"]) == (Run.State.FAILED, "METERED_KEY_NOT_CONFIGURED")
        assert run.attempts.get().state == Attempt.State.SETTLED
        assert run.amount_picodollars == 0
        assert_explained(simulator)


class TestKeeper:
    def test_keeps_its_connection_while_a_run_is_under_way(self, monkeypatch: Any) -> None:
        """It would wait for another one behind all that wait for the pool, and the leases would expire."""
        opened, looks, look = [], threading.Semaphore(0), claims.cancelled_among

        def note(**_given: Any) -> None:
            opened.append(threading.current_thread().name)

        def counted(run_ids: Any) -> Any:
            looks.release()
            return look(run_ids)

        monkeypatch.setattr(lease_renewal, "LOOK_SECONDS", 0.01)
        monkeypatch.setattr(claims, "cancelled_among", counted)
        connection_created.connect(note)
        renewal = LeaseRenewal(owner="test-worker")
        try:
            with renewal.watching(LiveRun(Run(id="run_1", epoch=1), seconds_left=60)):
                for _ in range(5):
                    assert looks.acquire(timeout=30)
        finally:
            renewal.close()
            connection_created.disconnect(note)

        assert opened.count("lease-renewal") == 1

    # SQLite in memory closes no connection.
    @pytest.mark.parametrize("breaks", [False, pytest.param(True, marks=pytest.mark.postgres)])
    def test_of_a_gateway_opens_its_connection_at_once_and_another_only_for_a_broken_one(
        self, transactional_db: None, monkeypatch: pytest.MonkeyPatch, breaks: bool
    ) -> None:
        """A call that begins while requests hold all of the pool would wait for a connection for as long as a lease."""
        opened, looks, look = threading.Semaphore(0), threading.Semaphore(0), claims.cancelled_among
        broken: list[bool] = []

        def note(**_given: Any) -> None:
            if threading.current_thread().name == "lease-renewal":
                opened.release()

        def counted(run_ids: Any) -> Any:
            if breaks and not broken:
                broken.append(True)
                connection.connection.close()
            found = look(run_ids)
            looks.release()
            return found

        monkeypatch.setattr(lease_renewal, "LOOK_SECONDS", 0.01)
        monkeypatch.setattr(claims, "cancelled_among", counted)
        connection_created.connect(note)
        renewal = LeaseRenewal(owner="test-gateway", is_kept=True)
        try:
            assert opened.acquire(timeout=30)
            for _ in range(2):
                with renewal.watching(LiveRun(Run(id="run_1", epoch=1), seconds_left=60)):
                    assert looks.acquire(timeout=30)
        finally:
            renewal.close()
            connection_created.disconnect(note)

        assert opened.acquire(blocking=False) == breaks
        assert not opened.acquire(blocking=False)

    def test_keeps_two_claims_of_one_run_apart(
        self, simulator: Any, api: APIClient, connect: Any, make_profile: Any
    ) -> None:
        connect()
        make_profile()
        run = Run.objects.get(id=api.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi."}).json()["id"])
        renewal = LeaseRenewal(owner="test-worker")
        run.lease_owner, run.epoch = "test-worker", 1
        old = LiveRun(run, seconds_left=60)
        run.epoch = 2
        new = LiveRun(run, seconds_left=60)
        Run.objects.filter(id=run.id).update(state=Run.State.RUNNING, lease_owner="test-worker", epoch=2)

        with renewal.watching(new):
            with renewal.watching(old):
                renewal._renew([old, new])
            renewal._renew([new])

        renewal.close()
        assert old.stop is Stop.LEASE_LOST
        assert new.stop is None


class TestAPoller:
    def test_serves_those_who_come_while_the_last_one_leaves(self, transactional_db: None) -> None:
        there: set[str] = set()
        poller = long_polling.Poller(lambda awaited: there & set(awaited))

        async def story() -> bool:
            assert not await poller.wait("first", seconds=0.05)
            there.add("second")
            return await poller.wait("second", seconds=5)

        assert asyncio.run(story())


class TestIdempotency:
    def test_does_not_carry_a_run_from_one_project_to_another(
        self, simulator: Any, ada: User, ada_access: Any, api_as: Any, connect: Any, make_profile: Any, project: Project
    ) -> None:
        connect()
        make_profile()
        other = Project.objects.create(org=ada_access.org, slug="other", name="Other")
        body = {"profileId": "prof_deep", "input": "Hi."}
        first = api_as(ada, project=project).post("/api/v1/runs", body, HTTP_IDEMPOTENCY_KEY="k")

        answer = api_as(ada, project=other).post("/api/v1/runs", body, HTTP_IDEMPOTENCY_KEY="k")

        assert first.status_code == 202
        assert (answer.status_code, answer.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


class TestATokenOfOneProject:
    def test_changes_nothing_of_the_organization_around_it(
        self, ada: User, ada_access: Any, api: APIClient, api_as: Any, project: Project
    ) -> None:
        pool = api.post("/api/v1/pools", {"name": "mine", "providerId": "local"}).json()["id"]
        bound = api_as(ada, project=project)

        assert bound.post("/api/v1/pools", {"name": "x", "providerId": "local"}).status_code == 403
        assert bound.patch(f"/api/v1/pools/{pool}", {"active": False}).status_code == 403
        assert bound.delete(f"/api/v1/pools/{pool}").status_code == 403


class TestAPool:
    def test_has_a_name_that_is_measured_with_the_white_space_around_it(self, api: APIClient) -> None:
        answer = api.post("/api/v1/pools", {"name": "mine" + " " * 60, "providerId": "local"})

        assert answer.status_code == 400
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/name"]


class TestRetention:
    def test_finds_and_drops_images_inside_tool_results(self) -> None:
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}
        nested = {"type": "tool_result", "tool_use_id": "1", "content": [image]}
        messages = [{"role": "user", "content": [nested]}]

        assert retention.holds_images(messages)
        assert "base64" not in str([retention._without_images(message) for message in messages])
        assert not retention.holds_images([{"role": "user", "content": "text"}])


def test_a_bug_in_a_settlement_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import IntegrityError

    tries: list[int] = []

    def broken(plans: Any) -> None:
        tries.append(1)
        raise IntegrityError("twice")

    monkeypatch.setattr(settle, "write", broken)

    with pytest.raises(IntegrityError):
        execute._settle(lambda now: None)  # type: ignore[arg-type, return-value]

    assert len(tries) == 1
