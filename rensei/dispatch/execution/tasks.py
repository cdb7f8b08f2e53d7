"""The Celery side of the doorbell. A message is an id and nothing else; what it means stands in the database."""

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
    Claim the run whose turn it is, which may be another than the message names, and carry it to its end.

    The end of one run is the next one's chance, so it wakes a worker again. A message that finds no run to claim
    wakes no other, so the messages come to an end.
    """
    keeper = _lease_renewal_of(os.getpid())
    claim = claims.claim_next(owner=keeper.owner)
    if claim is not None:
        try:
            execute(claim, keeper)
        finally:
            wake_up.notify_workers(claim.run.id)


@functools.cache
def _lease_renewal_of(pid: int) -> LeaseRenewal:
    """One keeper for each process: a forked child does not inherit its parent's thread."""
    return LeaseRenewal(owner=f"{socket.gethostname()[:40]}:{pid}:celery")
