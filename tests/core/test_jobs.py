"""Periodic jobs: one worker has each, and none keeps it by dying."""

from contextlib import nullcontext
from datetime import timedelta

import pytest
from django.db import OperationalError, connection

from rensei import worker
from rensei.core import jobs, unknown
from rensei.core.clock import database_now
from rensei.core.jobs import Job
from rensei.core.models import DueJob

pytestmark = pytest.mark.django_db(transaction=True)

JOB = Job(name="sweep", every=timedelta(minutes=1), run=lambda: None, lease=timedelta(seconds=30))


@pytest.fixture
def due() -> Job:
    """A job that is due, and that nobody has."""
    assert not jobs.take(JOB)
    return JOB


def pass_by(span: timedelta) -> None:
    for row in DueJob.objects.all():
        row.due_at -= span
        row.leased_until = row.leased_until and row.leased_until - span
        row.save()


class TestTake:
    def test_gives_a_due_job_to_one(self, due):
        assert jobs.take(due)
        assert not jobs.take(due)

    def test_waits_for_the_next_time(self, due):
        leased_until = jobs.take(due)
        jobs.put_back(due, leased_until=leased_until)

        assert not jobs.take(due)
        pass_by(due.every)
        assert jobs.take(due)

    def test_takes_over_from_one_who_died_when_the_lease_is_over(self, due):
        jobs.take(due)

        pass_by(due.lease - timedelta(seconds=5))
        assert not jobs.take(due)
        pass_by(timedelta(seconds=6))

        assert jobs.take(due)


class TestPutBack:
    def test_leaves_the_lease_alone_that_another_took_meanwhile(self, due):
        slow, passed = jobs.take(due), due.lease + timedelta(seconds=1)
        pass_by(passed)
        other = jobs.take(due)

        jobs.put_back(due, leased_until=slow - passed)

        assert jobs.take(due) is None
        assert DueJob.objects.get().leased_until == other


class TestTheWorkersJobs:
    @pytest.mark.parametrize("name", ["reap", "seal-ledger", "anchor-ledger"])
    def test_that_are_waited_for_do_not_rest_long_with_a_dead_worker(self, name):
        (job,) = [job for job in worker.JOBS if job.name == name]
        jobs.take(job)
        jobs.take(job)

        left = DueJob.objects.get(name=name).leased_until - database_now()

        assert left <= timedelta(seconds=30)


class TestForEach:
    def test_reports_a_row_that_fails_and_does_the_others(self, caplog):
        unknown.take_counts()
        done = []

        def do(key):
            if key == "b":
                raise ValueError("no such thing")
            done.append(key)

        jobs.for_each(["a", "b", "c"], do, job="sweep")

        assert done == ["a", "c"]
        assert unknown.take_counts() == {("failed_row", "sweep b"): 1}

    def test_stops_where_the_database_has_gone(self):
        done = []

        def do(key):
            done.append(key)
            connection.close()
            raise OperationalError("the connection is lost")

        with pytest.raises(OperationalError) if connection.vendor == "postgresql" else nullcontext():
            jobs.for_each(["a", "b"], do, job="sweep")

        assert done == (["a"] if connection.vendor == "postgresql" else ["a", "b"])
