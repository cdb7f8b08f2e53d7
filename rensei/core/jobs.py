"""Periodic jobs: any worker may take a due one, and a lease prevents two from running it at once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from django.db import Error, connection
from django.db.models import Q
from django.db.models.functions import Now

from rensei.core.clock import database_now
from rensei.core.models import DueJob
from rensei.core.transactions import durable
from rensei.core.unknown import note_unknown

LEASE = timedelta(minutes=5)

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A periodic job. `run` opens its own transactions, and may be run twice after a crash."""

    name: str
    every: timedelta
    run: Callable[[], object]
    lease: timedelta = LEASE
    # Checked before a very frequent job is taken, because taking it and putting it back are two commits.
    has_work: Callable[[], bool] | None = None


def due_among(jobs: Sequence[Job]) -> list[Job]:
    """List, in one statement, the jobs that can be taken now. A job that has never run is due."""
    names = [job.name for job in jobs]
    free = Q(leased_until=None) | Q(leased_until__lt=Now())
    waiting = set(DueJob.objects.filter(name__in=names).exclude(free, due_at__lte=Now()).values_list("name", flat=True))
    return [job for job in jobs if job.name not in waiting]


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
