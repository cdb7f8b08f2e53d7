"""The Celery application: `celery -A rensei worker`. Without a broker nothing here is used."""

import os

from celery import Celery, signals

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "rensei.settings")
app = Celery("rensei")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["rensei.dispatch.execution"])


def _exchange_counts(**_signal: object) -> None:
    """Start the exchange in each process: a worker has one process with threads, or one that forks the others."""
    from rensei.core.rates import start_exchanging
    from rensei.core.unknown_names import start_storing

    start_storing()
    start_exchanging()


def _write_openings(**_signal: object) -> None:
    """Write what waits when a forked process ends, which does not run what is registered for its exit."""
    from integrations.vault import openings

    openings.write_at_exit()


signals.worker_process_shutdown.connect(_write_openings)
signals.worker_init.connect(_exchange_counts)
signals.worker_process_init.connect(_exchange_counts)
