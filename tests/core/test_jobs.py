"""Periodic jobs: one worker has each, and none keeps it by dying."""

from contextlib import nullcontext
from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rensei import worker
from rensei.core import jobs, unknown
from rensei.core.clock import database_now
from rensei.core.jobs import Job, Schedule
from rensei.core.models import DueJob
from tests.drawn import examples

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


class TestSchedule:
    JOBS = [Job(name=name, every=timedelta(minutes=1), run=lambda: None) for name in ("new", "due", "early", "leased")]

    def test_lists_the_jobs_that_can_be_taken(self):
        now, minute = database_now(), timedelta(minutes=1)
        for name, due_at, leased_until in (
            ("due", now - minute, None),
            ("early", now + minute, None),
            ("leased", now - minute, now + minute),
        ):
            DueJob.objects.create(name=name, due_at=due_at, leased_until=leased_until)

        assert [job.name for job in Schedule(self.JOBS).due()] == ["new", "due"]

    def test_lists_a_job_whose_lease_is_over(self):
        past = database_now() - timedelta(minutes=1)
        DueJob.objects.create(name="leased", due_at=past, leased_until=past)

        assert "leased" in {job.name for job in Schedule(self.JOBS).due()}

    @pytest.mark.parametrize("has_work", [False, True])
    def test_lists_a_job_with_a_condition_while_it_is_met(self, has_work):
        DueJob.objects.create(name="other", due_at=database_now() - timedelta(minutes=1))
        found = f"EXISTS (SELECT 1 FROM core_duejob WHERE due_at {'<' if has_work else '>'} {{now}})"
        job = Job(name="other", every=timedelta(minutes=1), run=lambda: None, has_work=found)

        assert Schedule([job]).due() == ([job] if has_work else [])

    def test_makes_no_query_until_the_next_job_is_due(self, due, django_assert_num_queries):
        passed = 0.0
        schedule = Schedule([due], timer=lambda: passed)
        schedule.done(due)

        with django_assert_num_queries(0):
            assert schedule.due() == []
            assert schedule.seconds_left == due.every.total_seconds()
        passed = due.every.total_seconds()

        assert schedule.seconds_left == 0
        assert schedule.due() == [due]

    def test_looks_again_after_some_minutes_though_its_clock_may_stand_still(self):
        job = Job(name="nightly", every=timedelta(days=1), run=lambda: None)
        DueJob.objects.create(name=job.name, due_at=database_now() + job.every)
        schedule = Schedule([job])

        assert schedule.due() == []
        assert schedule.seconds_left <= jobs.LOOKS_APART_MAX.total_seconds()

    @settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        steps=st.lists(st.tuples(st.sampled_from(["other takes", "other is done", "pass"]), st.integers(1, 90))),
        every=st.integers(5, 120),
        lease=st.integers(5, 120),
    )
    def test_finds_a_job_in_time_although_another_worker_takes_it_or_dies_with_it(self, db, steps, every, lease):
        """Whenever the job could have been taken for as long as a second, the schedule has looked, or looks now."""
        DueJob.objects.all().delete()
        job = Job(name="sweep", every=timedelta(seconds=every), run=lambda: None, lease=timedelta(seconds=lease))
        jobs.take(job)
        passed, others_lease = 0.0, None
        schedule = Schedule([job], timer=lambda: passed)
        for step, seconds in steps:
            if step == "other takes":
                others_lease = jobs.take(job) or others_lease
            elif step == "other is done" and others_lease is not None:
                jobs.put_back(job, leased_until=others_lease)
            elif step == "pass":
                for _ in range(seconds):
                    passed += 1
                    pass_by(timedelta(seconds=1))
                    others_lease = others_lease and others_lease - timedelta(seconds=1)
                    if schedule.seconds_left > 0:
                        row = DueJob.objects.get()
                        free_since = max(row.due_at, row.leased_until or row.due_at)
                        assert database_now() - free_since < timedelta(seconds=2)
                    elif schedule.due():
                        leased_until = jobs.take(job)
                        jobs.put_back(job, leased_until=leased_until)
                        schedule.done(job)


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
