"""Periodic jobs: any worker may take a due one, and a lease prevents two from running it at once."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.db import Error, connection
from django.db.models import Q

from rensei.core.clock import database_now, moment_of, now_sql
from rensei.core.models import DueJob
from rensei.core.transactions import durable
from rensei.core.unknown import note_unknown

LEASE = timedelta(minutes=5)
AGAIN = timedelta(seconds=1)
# The clock of the looks stands still while a machine sleeps; that of the database, by which jobs are due, does not.
LOOKS_APART_MAX = timedelta(minutes=10)

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A periodic job. `run` opens its own transactions, and may be run twice after a crash."""

    name: str
    every: timedelta
    run: Callable[[], object]
    lease: timedelta = LEASE
    # The condition, in SQL, under which a frequent job is taken: taking it and putting it back are two commits. `{now}`
    # is the time. All conditions are part of one statement, which an idle worker makes every few seconds.
    has_work: str = "TRUE"


class Schedule:
    """
    The jobs of one thread, and when each is looked at next: an idle worker makes no query before that.

    A job is looked at after its period at the latest, so it is found in time even if another worker had it and died.
    """

    def __init__(self, jobs: Sequence[Job], *, timer: Callable[[], float] = time.monotonic) -> None:
        self._timer = timer
        self._looks = {job: timer() for job in jobs}

    def due(self) -> list[Job]:
        """List, in one statement, the jobs that are due and have work. A job that has never run is due."""
        looked_at = [job for job, look in self._looks.items() if look <= self._timer()]
        if not looked_at:
            return []
        states = _states(looked_at)
        due = []
        for job in looked_at:
            wait, has_work = states.get(job.name, (timedelta(), True))
            if wait > timedelta():
                self._look_after(job, wait)
            elif not has_work:
                self._look_after(job, job.every)
            else:
                due.append(job)
        return due

    def done(self, job: Job) -> None:
        """Note that a job has run: it is due again after its period."""
        self._look_after(job, job.every)

    def not_taken(self, job: Job) -> None:
        """Note that a job that was due could not be taken: it is new, or another worker was faster."""
        self._look_after(job, AGAIN)

    @property
    def seconds_left(self) -> float:
        """The time until `due` has to be called again."""
        return max(0.0, min(self._looks.values()) - self._timer())

    def _look_after(self, job: Job, wait: timedelta) -> None:
        self._looks[job] = self._timer() + min(wait, job.every, LOOKS_APART_MAX).total_seconds()


def _states(jobs: Sequence[Job]) -> dict[str, tuple[timedelta, bool]]:
    """Read, for each job that has run before, the time until it can be taken, and whether it has work."""
    conditions = " ".join(f"WHEN '{job.name}' THEN {job.has_work}" for job in jobs)
    names = ", ".join(f"'{job.name}'" for job in jobs)
    sql = f"""
        SELECT name, due_at, leased_until, {{now}}, CASE name {conditions} END FROM core_duejob WHERE name IN ({names})
    """  # noqa: S608 - it is made of constants alone
    with connection.cursor() as cursor:
        cursor.execute(sql.format(now=now_sql()))
        states = {}
        for name, due_at, leased_until, now, has_work in cursor.fetchall():
            free_at = max(moment_of(due_at), moment_of(leased_until or due_at))
            states[name] = (free_at - moment_of(now), bool(has_work))
        return states


def take(job: Job) -> datetime | None:
    """Take a job if it is due and not leased, and return the end of the lease. None if it cannot be taken."""
    with durable():
        now = database_now()
        free = Q(leased_until=None) | Q(leased_until__lt=now)
        due = DueJob.objects.filter(free, name=job.name, due_at__lte=now)
        if due.update(leased_until=now + job.lease):
            return now + job.lease
        if not DueJob.objects.filter(name=job.name).exists():
            DueJob.objects.bulk_create([DueJob(name=job.name, due_at=now)], ignore_conflicts=True)
        return None


def put_back(job: Job, *, leased_until: datetime) -> None:
    """
    Record that a job is done, and when it is due again.

    A worker that took longer than its lease changes nothing: another may have the job by now.
    """
    ours = DueJob.objects.filter(name=job.name, leased_until=leased_until)
    ours.update(due_at=database_now() + job.every, leased_until=None)


def for_each(keys: Iterable[str], do: Callable[[str], object], *, job: str) -> None:
    """
    Do a job for each of its rows separately. A row that fails is reported and skipped until the next time.

    The rows are given as keys, so that a row that cannot even be read does not block the others.

    :raises Exception: the error of a row, if the connection is lost: every other row would raise it too
    """
    for key in keys:
        try:
            do(key)
        except Exception as fault:
            if isinstance(fault, Error) and not connection.is_usable():
                raise
            report_row(key, job=job)


def report_row(key: str, *, job: str) -> None:
    """Report to the operators, while its exception is handled, a row that a job has skipped."""
    logger.exception("row_passed_over", job=job, row=key)
    note_unknown("failed_row", f"{job} {key}")
