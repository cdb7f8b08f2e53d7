"""
Every opening of a sealed record is recorded: which record, for which run or person, why, and by which process.

`note` makes no query, since calls wait for it: it keeps the record in memory. The queue writes the records of a run
with its attempt, before the key signs anything. A thread of the process writes all others at once, and a process that
is killed loses at most those of its last second.
"""

import atexit
import functools
import os
import re
import socket
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import structlog
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from integrations.models import KeyOpening
from rensei.core.errors import DATABASE_FAULTS
from rensei.core.ids import new_id
from rensei.core.limits import limit
from rensei.core.transactions import assert_open

Reason = KeyOpening.Reason

WRITE_AFTER_SECONDS = 0.25
BATCH = 500
WAITING_MAX = limit(
    10_000,
    "openings",
    what="Openings of sealed keys that wait to be recorded, each process",
    told="operators: `key_openings_lost` in the log; the oldest are dropped",
)

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Why:
    """
    The cause of an opening: a run, or a person, a command or a job (`actor`), with its reason.

    `org_id` is the organization for which a record of the platform is opened.
    """

    reason: KeyOpening.Reason
    run_id: str = ""
    actor: str = ""
    token_id: str = ""
    org_id: str | None = None


# What opens a record and does not say why. It is an alarm.
UNEXPLAINED = Why(reason=Reason.UNKNOWN)


class Opening(NamedTuple):
    """One opening that waits to be recorded. A model would take ten times as long to make."""

    id: str
    opened_at: datetime
    record_id: str
    version: int
    org_id: str | None
    why: Why

    def row(self) -> KeyOpening:
        return KeyOpening(
            id=self.id,
            opened_at=self.opened_at,
            record_id=self.record_id,
            version=self.version,
            org_id=self.org_id,
            reason=self.why.reason,
            run_id=self.why.run_id,
            actor=self.why.actor,
            token_id=self.why.token_id,
            process=process_name(),
        )


_waiting: dict[str, Opening] = {}
_is_wanted = threading.Event()
_lock = threading.Lock()
_lost = 0


def note(*, record_id: str, version: int, org_id: str | None, why: Why) -> None:
    """Record an opening, soon. It may happen in a transaction that is rolled back, which does not undo it."""
    opening = Opening(new_id("open"), timezone.now(), record_id, version, why.org_id or org_id, why)
    while len(_waiting) >= WAITING_MAX:
        _drop_oldest()
    _waiting[opening.id] = opening
    if why.reason is Reason.UNKNOWN:
        logger.error("key_opened_without_a_run", record_id=record_id, version=version, process=process_name())
    if not _is_wanted.is_set():
        start_writing(os.getpid())
        _is_wanted.set()


def write_of(run_id: str) -> None:
    """Write the openings for a run in the caller's transaction. If that is rolled back, they are written later."""
    assert_open()
    found = [opening for opening in list(_waiting.values()) if opening.why.run_id == run_id]
    if found:
        _insert(found)
        transaction.on_commit(functools.partial(_forget, found))


def write() -> None:
    """
    Write the openings that wait.

    :raises DatabaseError: if the database does not take them; they wait on
    """
    while found := list(_waiting.values())[:BATCH]:
        _insert(found)
        _forget(found)


@functools.cache
def start_writing(pid: int) -> None:
    """Start the thread of a process: a forked child does not inherit its parent's."""
    threading.Thread(target=_write_on, name="key-openings", daemon=True).start()
    atexit.register(write_at_exit)


def forget_all() -> None:
    """Drop what waits: in a forked process, whose parent writes it, and in tests, which share a process."""
    global _is_wanted, _lock, _lost
    _waiting.clear()
    # The parent may have held their locks.
    _is_wanted, _lock, _lost = threading.Event(), threading.Lock(), 0


os.register_at_fork(after_in_child=forget_all)


def process_name() -> str:
    """Return what runs in this process, the machine, and the process id."""
    return _process_name(os.getpid())


@functools.cache
def _process_name(pid: int) -> str:
    program = Path(sys.argv[0])
    # A module that was started by `python -m`, as the web server is, has its package's name.
    name = program.parent.name if program.name == "__main__.py" else program.name
    words = [name or "python", *sys.argv[1:2]]
    # A command's name is shown, an argument of another kind is not.
    shown = [word for word in words if re.fullmatch(r"[A-Za-z][\w.-]{0,30}", word)]
    return f"{' '.join(shown)} {socket.gethostname()[:40]}:{pid}".strip()


def _write_on() -> None:
    while True:
        _is_wanted.wait()
        # Others follow the first one. By then, the openings of a run were written with its attempt.
        threading.Event().wait(WRITE_AFTER_SECONDS)
        _is_wanted.clear()
        _write_or_wait()


def _write_or_wait() -> None:
    _tell_of_lost()
    try:
        try:
            write()
        except DATABASE_FAULTS:
            raise
        except DatabaseError:
            # A row that the database refuses must not hold back the others.
            _write_singly()
    except DATABASE_FAULTS as fault:
        logger.warning("key_openings_wait", count=len(_waiting), fault=type(fault).__name__)
        _is_wanted.set()
    except Exception:
        logger.exception("key_openings_wait", count=len(_waiting))
        _is_wanted.set()
    finally:
        connection.close()


def _write_singly() -> None:
    """
    Write the openings that wait one by one, and drop those that the database refuses.

    :raises DatabaseError: if the database takes none
    """
    for opening in list(_waiting.values()):
        try:
            with transaction.atomic():
                _insert([opening])
        except DATABASE_FAULTS:
            raise
        except DatabaseError:
            logger.exception("key_opening_refused", record_id=opening.record_id, run_id=opening.why.run_id)
        _forget([opening])


def write_at_exit() -> None:
    """Write what waits when a process ends."""
    if _waiting:
        _write_or_wait()


def _insert(openings: Iterable[Opening]) -> None:
    # The thread and a run's transaction may write the same one: the first commit counts.
    KeyOpening.objects.bulk_create([opening.row() for opening in openings], ignore_conflicts=True)


def _forget(openings: Iterable[Opening]) -> None:
    for opening in openings:
        _waiting.pop(opening.id, None)


def _drop_oldest() -> None:
    global _lost
    with _lock:
        oldest = next(iter(_waiting), None)
        if oldest is not None and len(_waiting) >= WAITING_MAX:
            del _waiting[oldest]
            _lost += 1


def _tell_of_lost() -> None:
    """Log how many were dropped, in one line: there may be thousands."""
    global _lost
    with _lock:
        count, _lost = _lost, 0
    if count:
        logger.error("key_openings_lost", count=count)
