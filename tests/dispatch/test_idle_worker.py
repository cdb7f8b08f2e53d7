"""A worker without work asks the database little, and a run that is queued wakes it."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from rensei import worker
from rensei.core import jobs
from rensei.core.clock import database_now
from rensei.core.jobs import Job
from rensei.core.models import DueJob
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution.lease_renewal import LeaseRenewal
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

        elsewhere(lambda: claims.requeue_unsent(now=database_now() + timedelta(minutes=1)))

        watch.wait(FOR_EVER)
        assert Run.objects.get(id=run.id).state == Run.State.QUEUED

    def test_ends_for_each_of_two_runs(self, watch, dispatch):
        for _ in range(2):
            watch.begin()
            elsewhere(dispatch)
            watch.wait(FOR_EVER)

    def test_ends_when_it_is_told_to(self, watch):
        watch.begin()
        for _ in range(100_000):
            watch.wake()

        watch.wait(FOR_EVER)

    def test_ends_after_its_time(self, watch):
        watch.begin()

        watch.wait(0.05)

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

    def test_looks_often_while_a_run_waits_that_may_not_start(self, monkeypatch, dispatch, idle, renewal):
        waits: list[float] = []
        monkeypatch.setattr(QueueWatch, "wait", lambda self, seconds: waits.append(seconds))
        monkeypatch.setattr(claims, "claim_next", lambda *, owner: None)
        dispatch()

        for _ in range(TICKS):
            idle._look(renewal)

        assert waits == [worker.LOOK_SECONDS] * TICKS

    def test_asks_for_its_jobs_in_two_statements_while_none_is_due(self):
        worker.run_due_jobs(worker.JOBS)
        worker.run_due_jobs(worker.JOBS)
        DueJob.objects.exclude(name="advance-workflows").update(due_at=database_now() + timedelta(days=1))
        DueJob.objects.filter(name="advance-workflows").update(due_at=database_now() - timedelta(days=1))

        with CaptureQueriesContext(connection) as asked:
            worker.run_due_jobs(worker.JOBS)

        assert [one["sql"].split()[0] for one in asked] == ["SELECT", "SELECT"]


class TestDueAmong:
    JOBS = [Job(name=name, every=timedelta(minutes=1), run=lambda: None) for name in ("new", "due", "early", "leased")]

    def test_tells_those_that_can_be_taken(self):
        now, minute = database_now(), timedelta(minutes=1)
        for name, due_at, leased_until in (
            ("due", now - minute, None),
            ("early", now + minute, None),
            ("leased", now - minute, now + minute),
        ):
            DueJob.objects.create(name=name, due_at=due_at, leased_until=leased_until)

        assert [job.name for job in jobs.due_among(self.JOBS)] == ["new", "due"]

    def test_tells_one_whose_lease_is_over(self):
        past = database_now() - timedelta(minutes=1)
        DueJob.objects.create(name="leased", due_at=past, leased_until=past)

        assert "leased" in {job.name for job in jobs.due_among(self.JOBS)}
