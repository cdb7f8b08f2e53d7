"""`manage.py worker`: execute queued runs and the periodic jobs until stopped."""

import signal
import threading
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand

from rensei.worker import Worker


class Command(BaseCommand):
    help = "Execute queued runs and run the periodic jobs, until SIGTERM or Ctrl-C."

    def handle(self, *args: Any, **options: Any) -> None:
        worker = Worker()

        def stop(number: int, frame: FrameType | None) -> None:
            # Not in this thread: the code that the signal interrupts may hold the lock of an event that `stop` sets.
            threading.Thread(target=worker.stop).start()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        worker.run()
