"""
What dead workers left behind is put right here, by whichever worker takes the job.

A run whose worker died before its attempt goes back into the queue. One that died with a call under way
is ended, with an estimated charge; it is never called again by itself.
"""

from datetime import datetime
from functools import partial

from django.db.models import QuerySet

from rensei.core import jobs
from rensei.core.clock import database_now
from rensei.core.usage import Usage
from rensei.dispatch.admission.admit import IDEMPOTENCY_KEPT
from rensei.dispatch.models import Attempt, IdempotencyKey, Run, RunChunk
from rensei.dispatch.queue import claims, wake_up
from rensei.dispatch.settlement import outcomes, settle

# So many are ended in seconds. Those that fail come again each time, so there is place for many of them.
AT_ONCE = 1000


def reap() -> None:
    """Requeue, end or ring for every run without a live worker. A run that fails keeps no other from its end."""
    now = database_now()
    claims.requeue_unsent(now=now)
    abandoned = claims.abandoned(now=now)
    run_ids = list(abandoned.values_list("id", flat=True)[:AT_ONCE])
    jobs.for_each(run_ids, partial(_end, among=abandoned, now=now), job="reap")
    jobs.for_each(claims.unanswered(now=now), wake_up.notify_workers, job="wake-up")


def forget_idempotency_keys() -> None:
    """Drop the Idempotency-Keys that are older than they are kept for."""
    IdempotencyKey.objects.filter(created_at__lt=database_now() - IDEMPOTENCY_KEPT).delete()


def _end(run_id: str, *, among: QuerySet[Run], now: datetime) -> None:
    run = among.filter(id=run_id).first()
    if run is None:
        # It has ended since, or its worker came back and renewed the lease.
        return
    attempt = run.attempts.filter(state=Attempt.State.OPEN).first()
    plan = outcomes.given_up(run, attempt, reported=_usage_seen(run), text=_text_seen(run), now=now)
    settle.write([plan])


def _text_seen(run: Run) -> str:
    deltas = run.chunks.filter(kind=RunChunk.Kind.DELTA).order_by("seq").values_list("data", flat=True)
    return "".join(delta["text"] for delta in deltas)


def _usage_seen(run: Run) -> Usage | None:
    """The last usage that the worker wrote down, if it belongs to the call that was under way."""
    newest = run.chunks.filter(kind=RunChunk.Kind.USAGE).order_by("-seq").values_list("data", flat=True).first()
    return Usage.from_dict(newest) if newest else None
