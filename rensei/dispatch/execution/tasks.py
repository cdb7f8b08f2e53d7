"""The Celery task that a wake-up triggers. A message holds only a run id; all state is in the database."""

import functools
import os
import socket

from celery import shared_task

from rensei.dispatch.execution.execute import execute
from rensei.dispatch.execution.lease_renewal import LeaseRenewal
from rensei.dispatch.queue import claims, wake_up
from rensei.dispatch.queue.broker import TASK


@shared_task(name=TASK)
def execute_next_run(run_id: str) -> None:
    """
    Claim the next run in fair order, which may differ from `run_id`, and execute it until it ends.

    The end of a run may make another one claimable, so a wake-up follows it. A message that finds no run to claim
    sends no wake-up, so the messages do not multiply.
    """
    renewal = _lease_renewal_of(os.getpid())
    claim = claims.claim_next(owner=renewal.owner)
    if claim is not None:
        try:
            execute(claim, renewal)
        finally:
            wake_up.notify_workers(claim.run.id)


@functools.cache
def _lease_renewal_of(pid: int) -> LeaseRenewal:
    """Return the lease renewal of the process: a forked child does not inherit its parent's thread."""
    return LeaseRenewal(owner=f"{socket.gethostname()[:40]}:{pid}:celery")
