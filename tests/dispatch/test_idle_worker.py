"""A worker without work asks the database little, and a run that is queued wakes it."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from rensei import worker
from rensei.core.clock import database_now
from rensei.core.jobs import Schedule
from rensei.core.models import DueJob
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import reaper
from rensei.dispatch.execution.lease_renewal import LeaseRenewal, LiveRun
from rensei.dispatch.models import Run
from rensei.dispatch.queue import claims
from rensei.dispatch.queue.watch import QueueWatch
from rensei.orgs.access import Access

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

# A wait that nothing ends is ended by the time of the test, which fails it.
FOR_EVER = 100_000.0
TICKS = 20


@pytest.fixture
def dispatch(
    simulator: Any, ada_access: Access, connect: Callable[..., Any], make_profile: Callable[..., Any]
) -> Callable[[], Run]:
    connect()
    make_profile()

    def send() -> Run:
        asked = messages_from(text="Hi.", messages=None)
        return admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=asked))

    return send


@pytest.fixture
def watch() -> Iterator[QueueWatch]:
    made = QueueWatch()
    yield made
    made.close()


def elsewhere(do: Callable[[], object]) -> None:
    """Do something on another connection, as another process would, and wait until it is committed."""

    def work() -> None:
        try:
            do()
        finally:
            connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


class TestWait:
    def test_ends_when_a_run_is_queued(self, watch, dispatch):
        watch.begin()

        elsewhere(dispatch)

        watch.wait(FOR_EVER)

    def test_ends_when_a_run_is_queued_while_it_lasts(self, watch, dispatch):
        watch.begin()
        later = threading.Timer(0.2, elsewhere, [dispatch])
        later.start()

        watch.wait(FOR_EVER)
        later.join()

        assert claims.is_waiting()

    def test_ends_when_a_run_is_queued_again(self, watch, dispatch):
        run = dispatch()
        claim = claims.claim_next(owner="dead")
        assert claim is not None
        watch.begin()

        long_ago = database_now() - timedelta(minutes=1)
        Run.objects.filter(id=run.id).update(created_at=long_ago, lease_until=long_ago)
        elsewhere(reaper.reap)

        watch.wait(FOR_EVER)
        assert Run.objects.get(id=run.id).state == Run.State.QUEUED

    def test_ends_for_each_of_two_runs(self, watch, dispatch):
        for _ in range(2):
            watch.begin()
            elsewhere(dispatch)
            assert watch.wait(FOR_EVER)

    def test_ends_for_one_of_two_workers_at_least(self, watch, dispatch):
        other = QueueWatch()
        ended = threading.Event()

        def wait() -> None:
            other.begin()
            begun.set()
            other.wait(60)
            ended.set()

        begun = threading.Event()
        thread = threading.Thread(target=elsewhere, args=[wait])
        thread.start()
        begun.wait()
        watch.begin()
        elsewhere(dispatch)

        woken = watch.wait(0.2)
        other.wake()
        thread.join()
        other.close()

        assert woken or ended.is_set()

    def test_ends_when_it_is_told_to(self, watch):
        watch.begin()
        for _ in range(100_000):
            watch.wake()

        assert not watch.wait(FOR_EVER)

    def test_ends_after_its_time(self, watch):
        watch.begin()

        assert not watch.wait(0.05)

    @pytest.mark.postgres
    def test_begins_anew_on_another_connection(self, watch, dispatch):
        watch.begin()
        connection.close()
        watch.begin()

        elsewhere(dispatch)

        watch.wait(FOR_EVER)

    @pytest.mark.postgres
    def test_takes_no_notices_while_it_pauses(self, watch, dispatch):
        watch.begin()
        watch.pause()

        elsewhere(dispatch)

        assert list(connection.connection.notifies(timeout=0.2)) == []


class TestAnIdleWorker:
    @pytest.fixture
    def idle(self) -> Iterator[worker.Worker]:
        made = worker.Worker()
        yield made
        made._watch.close()

    @pytest.fixture
    def renewal(self) -> Iterator[LeaseRenewal]:
        made = LeaseRenewal(owner="test")
        yield made
        made.close()
        made.close()

    def test_asks_once_in_each_look_and_never_claims(self, monkeypatch, idle, renewal):
        waits: list[float] = []
        monkeypatch.setattr(QueueWatch, "wait", lambda self, seconds: waits.append(seconds))
        idle._look(renewal)
        monkeypatch.setattr(claims, "claim_next", None)

        with CaptureQueriesContext(connection) as asked:
            for _ in range(TICKS):
                idle._look(renewal)

        statements = [one["sql"] for one in asked]
        assert len([sql for sql in statements if sql.startswith("SELECT")]) == TICKS
        assert len(statements) == TICKS, statements[:4]
        assert waits == [worker.LOOK_SECONDS, *[worker.IDLE_LOOK_SECONDS] * TICKS]

    def test_looks_each_second_while_no_notification_of_a_run_arrives(self, monkeypatch, dispatch, idle, renewal):
        waits: list[float] = []
        started: list[str] = []
        notified = False

        def wait(self: QueueWatch, seconds: float) -> bool:
            waits.append(seconds)
            return notified

        monkeypatch.setattr(QueueWatch, "wait", wait)
        monkeypatch.setattr(idle, "_start", lambda claim, renewal: started.append(claim.run.id))
        for notified in (False, True):
            for _ in range(2):
                idle._look(renewal)
            waits.clear()
            dispatch()
            for _ in range(3):
                idle._look(renewal)
            assert waits == [
                worker.LOOK_SECONDS,
                worker.IDLE_LOOK_SECONDS if notified else worker.UNNOTIFIED_LOOK_SECONDS,
            ]

        assert len(started) == 2

    def test_looks_often_while_a_run_waits_that_may_not_start(self, monkeypatch, dispatch, idle, renewal):
        waits: list[float] = []
        monkeypatch.setattr(QueueWatch, "wait", lambda self, seconds: waits.append(seconds))
        monkeypatch.setattr(claims, "claim_next", lambda *, owner, is_last_thread: None)
        dispatch()

        for _ in range(TICKS):
            idle._look(renewal)

        assert waits == [worker.LOOK_SECONDS] * TICKS

    def test_makes_one_statement_for_jobs_that_have_no_work(self):
        long_ago = database_now() - timedelta(days=1)
        idle = [job for job in worker.JOBS if job.has_work != "TRUE"]
        DueJob.objects.bulk_create(DueJob(name=job.name, due_at=long_ago) for job in idle)

        with CaptureQueriesContext(connection) as asked:
            worker.run_due_jobs(Schedule(idle))

        assert {job.name for job in idle} >= {"reap", "advance-workflows", "seal-ledger"}
        assert [one["sql"].split()[0] for one in asked] == ["SELECT"]

    def test_waits_for_its_next_job_or_heartbeat(self, monkeypatch, idle):
        later = database_now() + timedelta(days=1)
        DueJob.objects.bulk_create(DueJob(name=job.name, due_at=later) for job in worker.JOBS)
        pauses: list[float] = []

        def wait(seconds: float) -> None:
            pauses.append(seconds)
            idle.stop()

        monkeypatch.setattr(idle, "_wait_for_jobs", wait)
        idle._run_jobs()

        (pause,) = pauses
        assert worker.HEARTBEAT_SECONDS / 2 < pause <= worker.HEARTBEAT_SECONDS

    def test_waits_no_longer_when_a_run_has_ended(self, idle):
        idle._jobs_wanted.set()
        idle._stopped.set()

        idle._wait_for_jobs(FOR_EVER)

        assert not idle._jobs_wanted.is_set()

    def test_renews_no_lease_and_sleeps(self, dispatch, renewal):
        run = dispatch()
        with renewal.watching(LiveRun(run, seconds_left=60)):
            assert renewal._needed.is_set()

        assert not renewal._needed.is_set()
