"""Periodic jobs: any worker may take a due one, and the lease keeps two from running it at once."""

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
    """Something to do again and again. `run` opens its own transactions, and may be run twice after a crash."""

    name: str
    every: timedelta
    run: Callable[[], object]
    lease: timedelta = LEASE
    # Asked before a job is taken that is due very often, because taking it and putting it back are two commits.
    has_work: Callable[[], bool] | None = None


def due_among(jobs: Sequence[Job]) -> list[Job]:
    """Tell in one statement which of the jobs can be taken now. One that has never run is due."""
    names = [job.name for job in jobs]
    free = Q(leased_until=None) | Q(leased_until__lt=Now())
    waiting = set(DueJob.objects.filter(name__in=names).exclude(free, due_at__lte=Now()).values_list("name", flat=True))
    return [job for job in jobs if job.name not in waiting]


def take(job: Job) -> datetime | None:
    """Take a job if it is due and nobody else has it, and tell until when it is ours. None if it is not."""
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
    Note that a job has been done, and when it is due again.

    Whoever took longer than its lease changes nothing: another may have the job by now.
    """
    ours = DueJob.objects.filter(name=job.name, leased_until=leased_until)
    ours.update(due_at=database_now() + job.every, leased_until=None)


def for_each(keys: Iterable[str], do: Callable[[str], object], *, job: str) -> None:
    """
    Do a job for each of its rows by itself. A row that fails is reported and passed over until the next time.

    The rows come as their keys, so that one that cannot even be read keeps none of the others waiting.

    :raises Exception: what a row raised, where the connection is lost: every other row would raise it too
    """
    for key in keys:
        try:
            do(key)
        except Exception as fault:
            if isinstance(fault, Error) and not connection.is_usable():
                raise
            report_row(key, job=job)


def report_row(key: str, *, job: str) -> None:
    """Tell the operators, while its exception is handled, of a row that a job has passed over."""
    logger.exception("row_passed_over", job=job, row=key)
    note_unknown("failed_row", f"{job} {key}")
