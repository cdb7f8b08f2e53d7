"""Points the Celery application of the test process at a broker, and leaves nothing of it behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kombu.pools

from rensei.celery import app
from rensei.dispatch.queue import broker


@contextmanager
def ringing_through(url: str, settings: Any) -> Iterator[None]:
    """Point the application at a broker, with connections of its own."""
    _forget_connections()
    settings.CELERY_BROKER_URL = app.conf.broker_url = url
    yield
    _forget_connections()
    app.conf.broker_url = None


def _forget_connections() -> None:
    """Celery and the thread that sends keep their connections, and a message would go to the broker before."""
    broker.forget()
    app.pool.force_close_all()
    kombu.pools.reset()
    app._pool = app.amqp._producer_pool = None
