"""Celery on a real Redis rings the same rows: what a bell does, doubled, lost, or with no broker at all."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings

from rensei.celery import app
from rensei.core.clock import database_now
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import reaper
from rensei.dispatch.models import Run
from rensei.dispatch.queue import claims, wake_up
from rensei.dispatch.queue.broker import broker as watched
from rensei.orgs.access import Access
from tests import servers
from tests.broker import ringing_through
from tests.database import database_url
from tests.dispatch.reconcile import assert_explained
from tests.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.redis]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    with servers.start_redis() as url:
        yield url


@pytest.fixture
def broker(redis: str, settings: Any) -> Iterator[str]:
    """Ring through Redis, as a production installation does."""
    with ringing_through(redis, settings):
        yield redis
        app.control.purge()


@pytest.fixture
def celery_worker(broker: str, simulator: Any) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "DATABASE_URL": database_url(),
        "CELERY_BROKER_URL": broker,
        "RENSEI_VAULT_KEYRING": str(django_settings.RENSEI_VAULT_KEYRING),
        "RENSEI_ANTHROPIC_BASE_URL": simulator.url,
    }
    command = [sys.executable, "-m", "celery", "-A", "rensei", "worker", "--pool", "threads", "--concurrency", "4"]
    worker = subprocess.Popen([*command, "--loglevel", "WARNING"], cwd=ROOT, env=environment)
    yield worker
    worker.terminate()
    worker.wait(timeout=40)


def dispatch(access: Access) -> Run:
    request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text="Hi.", messages=None))
    return admit.dispatch(access, request)


def wait_for(*runs: Run) -> None:
    going_on = Run.objects.filter(id__in=[run.id for run in runs]).exclude(state__in=Run.ENDED)
    wait_until(lambda: not going_on.exists(), seconds=60, what="the end of every run")


class TestABell:
    def test_brings_a_worker_and_doubled_changes_nothing(
        self, celery_worker: Any, simulator: Any, ada_access: Access, connect: Any, make_profile: Any
    ) -> None:
        connect()
        make_profile()

        runs = [dispatch(ada_access) for _ in range(5)]
        for run in runs:
            wake_up.notify_workers(run.id)
            wake_up.notify_workers(run.id)
        wait_for(*runs)

        assert {run.state for run in Run.objects.all()} == {Run.State.SUCCEEDED}
        assert_explained(simulator)

    def test_that_was_lost_is_rung_again_by_the_reaper(
        self, celery_worker: Any, simulator: Any, ada_access: Access, connect: Any, make_profile: Any, monkeypatch: Any
    ) -> None:
        connect()
        make_profile()
        with monkeypatch.context() as lost:
            lost.setattr(wake_up, "notify_workers", lambda run_id: None)
            run = dispatch(ada_access)
        Run.objects.filter(id=run.id).update(created_at=database_now() - claims.LEASE)

        reaper.reap()
        wait_for(run)

        assert_explained(simulator)

    def test_without_a_broker_keeps_the_run_and_the_answer(
        self, simulator: Any, settings: Any, ada_access: Access, connect: Any, make_profile: Any, caplog: Any
    ) -> None:
        connect()
        make_profile()

        with ringing_through(f"redis://127.0.0.1:{servers.free_port()}/0", settings):
            run = dispatch(ada_access)
            wait_until(wake_up.is_broker_away)

        assert Run.objects.get(id=run.id).state == Run.State.QUEUED
        assert "broker_is_away" in caplog.text

    def test_carries_the_id_of_the_run_and_nothing_else(
        self, broker: str, simulator: Any, ada_access: Access, connect: Any, make_profile: Any
    ) -> None:
        from redis import Redis

        key = connect()
        make_profile()

        run = dispatch(ada_access)
        assert watched().flush(seconds=30)

        with Redis.from_url(broker) as client:
            message = b"".join(client.lrange("celery", 0, -1))
        assert run.id.encode() in message
        assert key.key_hint[-4:].encode() not in message
        assert b"Hi." not in message
