"""`manage.py worker`: execute queued runs and the periodic jobs until stopped."""

import signal
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand

from rensei.worker import Worker


class Command(BaseCommand):
    help = "Execute queued runs and run the periodic jobs, until SIGTERM or Ctrl-C."

    def handle(self, *args: Any, **options: Any) -> None:
        worker = Worker()

        def stop(number: int, frame: FrameType | None) -> None:
            worker.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        worker.run()
