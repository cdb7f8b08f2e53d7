"""The bell that tells a worker of a queued run. It may be lost or ring twice: the run table is the queue."""

from django.conf import settings

from rensei.dispatch.queue.broker import broker


def notify_workers(run_id: str) -> None:
    """
    Have the run's id sent to a Celery worker, where there is a broker. Without one, workers look by themselves.

    A broker that is down or slow costs the caller no time, and never a run: the reaper rings again for runs that wait.
    """
    if settings.CELERY_BROKER_URL:
        broker().send(run_id)


def is_broker_away() -> bool:
    """Tell whether there is a broker that did not answer when this process last asked it. It waits for no answer."""
    return bool(settings.CELERY_BROKER_URL) and broker().is_away
