"""
Small tasks that an answer does not wait for, such as sending a mail.

Otherwise the time of the answer would show what is done for one account and not for another. A thread of this process
does them within moments, and before the process ends.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import structlog
from django.db import connection

from rensei.core.limits import limit

WAITING_MAX = limit(
    1_000,
    "mails",
    what="Mails about accounts that wait to be made, each process; one more is dropped",
    told="operators: `later_dropped` in the log",
)

logger = structlog.get_logger(__name__)


class Later:
    """One thread, and a bounded queue of tasks for it."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._waiting: set[Future[None]] = set()

    def do(self, work: Callable[[], object], *, what: str) -> None:
        """
        Queue a task. It reads the committed state of the database, over a connection of its own.

        :param what: the name in the log if it fails
        """
        with self._lock:
            if len(self._waiting) >= WAITING_MAX:
                logger.error("later_dropped", what=what)
                return
            # Made at the first use, since a thread does not survive a fork.
            self._executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix="later")
            future = self._executor.submit(_do, work, what)
            self._waiting.add(future)
        future.add_done_callback(self._forget)

    def wait(self) -> None:
        """Wait until all tasks queued so far are done."""
        with self._lock:
            waiting = set(self._waiting)
        wait(waiting)

    def _forget(self, future: "Future[None]") -> None:
        with self._lock:
            self._waiting.discard(future)


later = Later()


def _do(work: Callable[[], object], what: str) -> None:
    try:
        work()
    except Exception as fault:  # noqa: BLE001 - nothing waits for it, and the words of a mail server may repeat a mail
        logger.warning("later_failed", what=what, fault=type(fault).__name__)
    finally:
        connection.close()
