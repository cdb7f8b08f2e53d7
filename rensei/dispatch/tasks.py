"""The Celery side of the doorbell. A message is an id and nothing else; what it means stands in the database."""

import functools
import os
import socket

from celery import shared_task

from rensei.dispatch import queue
from rensei.dispatch.execution import execute
from rensei.dispatch.keeper import Keeper


@shared_task(name="rensei.answer_bell")
def answer_bell(run_id: str) -> None:
    """Claim a run and carry it to its end. A doubled or late message finds nothing to claim."""
    keeper = _keeper_of(os.getpid())
    claim = queue.claim(run_id, owner=keeper.owner)
    if claim is not None:
        execute(claim, keeper)


@functools.cache
def _keeper_of(pid: int) -> Keeper:
    """One keeper for each process: a forked child does not inherit its parent's thread."""
    return Keeper(owner=f"{socket.gethostname()[:40]}:{pid}:celery")
