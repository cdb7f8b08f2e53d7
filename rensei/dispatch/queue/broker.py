"""
One process's connection to the broker: a separate thread sends the messages, so that no caller waits.

A message only wakes a worker, and may be lost: the run table is the queue. While the broker is unavailable, messages
are dropped. The thread tries it again every few seconds, and `python manage.py worker` starts the runs meanwhile.
"""

import atexit
import functools
import os
import threading
import time
from collections import deque
from typing import Any

import structlog

from rensei.core.limits import limit

TASK = "rensei.execute_next_run"
LOOK_SECONDS = 5.0
ANSWER_SECONDS = 1.0
WARN_SECONDS = 60.0
LAST_MESSAGES_SECONDS = 1.0
WAITING_MAX = limit(
    1_000,
    "messages",
    what="Messages that wake a worker and wait to be sent, each process; one more is dropped",
    told="the run: it is started by the next look of the workers",
)
# Redis and RabbitMQ each use the options that they support. Celery's own retries would take six seconds.
_BOUNDS = {
    "max_retries": 0,
    "socket_connect_timeout": ANSWER_SECONDS,
    "socket_timeout": ANSWER_SECONDS,
    "read_timeout": ANSWER_SECONDS,
    "write_timeout": ANSWER_SECONDS,
}

logger = structlog.get_logger(__name__)


class Broker:
    """The sending thread, and the last known state of the broker. `is_away` is False until an attempt fails."""

    def __init__(self) -> None:
        self.is_away = False
        self._waiting: deque[str] = deque()
        self._changed = threading.Condition()
        self._is_busy = False
        self._stopped = False
        self._warned_at = -WARN_SECONDS
        self._thread = threading.Thread(target=self._work, name="broker", daemon=True)
        self._thread.start()

    def send(self, run_id: str) -> None:
        """Queue a wake-up. It is dropped while the broker is unavailable, or if too many messages are queued."""
        with self._changed:
            if not self.is_away and len(self._waiting) < WAITING_MAX:
                self._waiting.append(run_id)
                self._changed.notify_all()

    def flush(self, *, seconds: float) -> bool:
        """Wait until every queued message has been tried. Returns False if the time expires first."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._is_busy, timeout=seconds)

    def stop(self) -> None:
        """End the thread once it is idle."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        connection: Any = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped, timeout=LOOK_SECONDS)
                if self._stopped:
                    break
                run_ids, self._is_busy = list(self._waiting), True
                self._waiting.clear()
            try:
                connection = connection or _connect()
                _exchange(connection, run_ids)
                self._answered()
            except Exception as fault:  # noqa: BLE001 - a fault of any kind is a broker that cannot be used
                _close(connection)
                connection = None
                self._failed(fault)
            finally:
                with self._changed:
                    self._is_busy = False
                    self._changed.notify_all()
        _close(connection)

    def _answered(self) -> None:
        if self.is_away:
            logger.warning("broker_is_back")
        self.is_away = False

    def _failed(self, fault: Exception) -> None:
        with self._changed:
            self.is_away = True
            self._waiting.clear()
        if time.monotonic() - self._warned_at >= WARN_SECONDS:
            self._warned_at = time.monotonic()
            # The fault's message is not logged: it may contain the broker's URL with the password.
            logger.warning("broker_is_away", fault=type(fault).__name__)


def broker() -> Broker:
    """Return the broker of this process. The first call starts its thread."""
    return _of_process(os.getpid())


def forget() -> None:
    """Stop the broker thread of this process, before the broker's address changes."""
    if _of_process.cache_info().currsize:
        broker().stop()
        _of_process.cache_clear()


@functools.cache
def _of_process(pid: int) -> Broker:
    """Create one broker for each process: a forked child does not inherit its parent's thread."""
    made = Broker()
    atexit.register(made.flush, seconds=LAST_MESSAGES_SECONDS)
    return made


def _connect() -> Any:
    # Imported here because a process without a broker does not need the library.
    from celery import current_app

    options = {**current_app.conf.broker_transport_options, **_BOUNDS}
    return current_app.connection_for_write(connect_timeout=ANSWER_SECONDS, transport_options=options)


def _exchange(connection: Any, run_ids: list[str]) -> None:
    """Send the messages. If there are none, test the broker by opening a channel, which it must confirm."""
    # Imported here because a process without a broker does not need the library.
    from celery import current_app

    # Connects with the timeouts of `_BOUNDS`; the first use of another channel would ignore them.
    _ = connection.default_channel
    if not run_ids:
        with connection.channel():
            return
    for run_id in run_ids:
        current_app.send_task(TASK, (run_id,), retry=False, connection=connection)


def _close(connection: Any) -> None:
    if connection is None:
        return
    try:
        connection.release()
    except Exception:  # noqa: BLE001 - closing a broken connection may fail too
        logger.debug("broker_connection_not_closed")
