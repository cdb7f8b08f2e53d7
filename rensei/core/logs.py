"""Logs: one line for each event, with the request id, and never a secret."""

import logging.config
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import structlog

INTERNAL, UNAVAILABLE = 500, 503
KEY_SHAPE = re.compile(r"(sk-ant-[a-z]+\d\d-|rsk_live_|rsr_)[A-Za-z0-9_-]+")


class ShortRefusals(logging.Filter):
    """
    Leaves out the traceback of requests that Django rejects: a wrong Host, a page without permission.

    They are no server faults, and anyone can send them, so they must not fill the log.
    https://docs.djangoproject.com/en/5.2/ref/logging/#django-request
    """

    def filter(self, record: logging.LogRecord) -> bool:
        refused = record.name == "django.request" and getattr(record, "status_code", 500) < INTERNAL
        if refused or record.name.startswith("django.security."):
            record.exc_info = None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


class Readiness(logging.Filter):
    """Leaves out that the server is not ready: this is no fault, and `/readyz` answers it at every check."""

    def filter(self, record: logging.LogRecord) -> bool:
        status, path = getattr(record, "status_code", None), getattr(getattr(record, "request", None), "path", "")
        return not (status == HTTPStatus.SERVICE_UNAVAILABLE and path == "/readyz")


class Outages(logging.Filter):
    """
    Passes one line a minute of those that an unavailable database would fill the log with.

    The next line that passes has in `more` how many were left out before it. Requests that are answered with
    503 also have a line of Django's own, which is counted separately.
    """

    EVENTS = frozenset(
        {
            "chunk_not_written", "claim_failed", "database_unavailable", "jobs_failed", "lease_renewal_database_down",
            "poller_database_down", "settlement_not_written", "slow_jobs_failed", "streams_database_down",
            "unknown_names_not_stored",
        }
    )  # fmt: skip
    SECONDS = 60.0

    def __init__(self, *, timer: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._timer = timer
        self._lock = threading.Lock()
        self._told_at: dict[str, float] = {}
        self._left_out: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        about = self._about(record)
        if about is None:
            return True
        now = self._timer()
        with self._lock:
            if now - self._told_at.get(about, -self.SECONDS) < self.SECONDS:
                self._left_out[about] += 1
                return False
            self._told_at[about] = now
            more = self._left_out.pop(about, 0)
        if more and isinstance(record.msg, dict):
            # Another handler may write the same record.
            record.msg = {**record.msg, "more": more}
        return True

    def _about(self, record: logging.LogRecord) -> str | None:
        if isinstance(record.msg, dict):
            # A bug has a traceback, and is logged under every name.
            return "database" if record.msg.get("event") in self.EVENTS and record.levelno < logging.ERROR else None
        refused = record.name == "django.request" and getattr(record, "status_code", 0) == UNAVAILABLE
        return "requests" if refused else None


def configure(options: dict[str, Any]) -> None:
    """Set up logging. `options` is `{"json": bool, "level": str}`."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer = (
        structlog.processors.JSONRenderer()
        if options["json"]
        # Tracebacks are plain text already: a renderer that formats them itself prints local variables.
        else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "line": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer, redact],
                    "foreign_pre_chain": shared,
                }
            },
            "filters": {
                "refusals": {"()": "rensei.core.logs.ShortRefusals"},
                "readiness": {"()": "rensei.core.logs.Readiness"},
                "outages": {"()": "rensei.core.logs.Outages"},
            },
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "formatter": "line",
                    "filters": ["refusals", "readiness", "outages"],
                }
            },
            "root": {"handlers": ["stderr"], "level": options["level"]},
            "loggers": {name: {"level": "WARNING"} for name in ("azure", "django.server", "httpx2")},
        }
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def redact(logger: object, method: str, line: str) -> str:
    """Replace all that has the form of a key, anywhere in the finished line: the last of several safeguards."""
    return KEY_SHAPE.sub(r"\1***", line)
