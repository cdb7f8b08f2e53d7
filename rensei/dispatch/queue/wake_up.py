"""Notify workers of a queued run. A wake-up may be lost or sent twice: the run table is the queue."""

from django.conf import settings

from rensei.dispatch.queue import watch
from rensei.dispatch.queue.broker import broker


def notify_workers(run_id: str) -> None:
    """
    Wake a worker process that watches the queue, and send the run's id to a Celery worker if there is a broker.

    A broker that is down or slow neither delays the caller nor loses a run: the reaper sends further wake-ups.
    """
    if settings.CELERY_BROKER_URL:
        broker().send(run_id)
    watch.notify()


def is_broker_away() -> bool:
    """Return whether the broker, if any, failed to respond to this process's last attempt. It makes no request."""
    return bool(settings.CELERY_BROKER_URL) and broker().is_away
