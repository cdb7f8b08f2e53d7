"""The bell that tells a worker of a queued run. It may be lost or ring twice: the run table is the queue."""

import structlog
from django.conf import settings
from kombu.exceptions import OperationalError

from rensei.core.transactions import leave_database

logger = structlog.get_logger(__name__)


def ring(run_id: str) -> None:
    """
    Send the run's id to a Celery worker, where there is a broker. Without one, workers look by themselves.

    A broker that is down costs time and never a run: the reaper rings again for runs that nobody claimed.
    """
    if not settings.CELERY_BROKER_URL:
        return
    from rensei.dispatch.tasks import answer_bell

    leave_database()
    try:
        answer_bell.apply_async((run_id,), retry=False)
    except OperationalError as fault:
        logger.warning("doorbell_failed", run_id=run_id, fault=type(fault).__name__)
