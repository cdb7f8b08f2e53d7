"""
Periodic job: recover the runs of workers that died.

A run that has waited too long for a slot of its pool is ended. One whose worker died before its attempt is queued
again. One whose worker died during a call is ended with an estimated charge; the call is never repeated automatically.
"""

from datetime import datetime
from functools import partial

from django.conf import settings
from django.db.models import QuerySet

from rensei.core import jobs
from rensei.core.clock import database_now
from rensei.core.usage import Usage
from rensei.dispatch.execution import sandboxes
from rensei.dispatch.execution.sandbox_work import PoolFull
from rensei.dispatch.models import Attempt, Run, RunChunk
from rensei.dispatch.pools import slots
from rensei.dispatch.queue import claims, wake_up
from rensei.dispatch.settlement import outcomes, settle
from rensei.dispatch.settlement.settle import RunEnd, SettlementPlan

# This many runs are ended within seconds. Runs that fail to end are selected again each time, so the limit is high.
AT_ONCE = 1000


def reap() -> None:
    """Requeue, end or send a wake-up for every run without a live worker. A failure of one run affects no other."""
    now = database_now()
    claims.requeue_unsent(now=now)
    abandoned = claims.abandoned(now=now)
    run_ids = list(abandoned.values_list("id", flat=True)[:AT_ONCE])
    jobs.for_each(run_ids, partial(_end, among=abandoned, now=now), job="reap")
    sandboxes.note_dead()
    jobs.for_each(claims.unanswered(now=now), wake_up.notify_workers, job="wake-up")
    too_long = {run.id: run for run in claims.waiting_too_long(now=now, limit=AT_ONCE)}
    jobs.for_each(too_long, lambda run_id: _end_waiting(too_long[run_id], now=now), job="pool-full")


def _end(run_id: str, *, among: QuerySet[Run], now: datetime) -> None:
    run = among.filter(id=run_id).first()
    if run is None:
        # It has ended meanwhile, or its worker has renewed the lease.
        return
    attempt = run.attempts.filter(state=Attempt.State.OPEN).first()
    plan = outcomes.given_up(run, attempt, reported=_usage_seen(run), text=_text_seen(run), now=now)
    settle.write([plan])


def _end_waiting(run: Run, *, now: datetime) -> None:
    """End a run for which no slot of its pool became free in time. It has cost nothing."""
    taken = slots.of_pool(run.org_id, run.pool, now=database_now())
    if not taken.are_full:
        # One became free while others were ended.
        return
    minutes = settings.RENSEI_POOL_WAIT_SECONDS / 60
    reason = f"{slots.sentence(run.pool, taken)} A run waits for {minutes:g} minutes at most."
    error = outcomes.refusal_error(PoolFull(reason=reason))
    end = RunEnd(state=Run.State.FAILED, error=error)
    settle.write([SettlementPlan(run=run, now=now, error=error, end=end, expired_before=now)])


def _text_seen(run: Run) -> str:
    deltas = run.chunks.filter(kind=RunChunk.Kind.DELTA).order_by("seq").values_list("data", flat=True)
    return "".join(delta["text"] for delta in deltas)


def _usage_seen(run: Run) -> Usage | None:
    """Return the last usage that the worker recorded for the interrupted call, if any."""
    newest = run.chunks.filter(kind=RunChunk.Kind.USAGE).order_by("-seq").values_list("data", flat=True).first()
    return Usage.from_dict(newest) if newest else None
