"""
The counts of unknown names, stored for all processes together.

Each process adds its counts every few seconds, from a thread with a connection of its own, so that no request waits for
it and no other connection is used.
"""

import functools
import os
import threading
from collections import Counter
from collections.abc import Mapping

import structlog
from django.db import DatabaseError, connection

from rensei.core.clock import database_now
from rensei.core.limits import limit
from rensei.core.models import UnknownName
from rensei.core.transactions import durable
from rensei.core.unknown import OTHERS, note_unknown, take_counts

# Further names are counted together, as the others of their kind.
ROWS_MAX = limit(
    1000, "names", what="Names that are not known, stored", told="operators: the others of a kind as `(others)`"
)
STORE_SECONDS = 10.0
ADD = """
    INSERT INTO core_unknownname (kind, name, count, first_seen_at, last_seen_at, marked_by)
    VALUES (%s, %s, %s, %s, %s, '')
    ON CONFLICT (kind, name) DO UPDATE
    SET count = core_unknownname.count + excluded.count, last_seen_at = excluded.last_seen_at
"""

logger = structlog.get_logger(__name__)


def start_storing() -> None:
    """Store this process's counts from now on. A second call does nothing."""
    _start(os.getpid())


def store() -> None:
    """Store this process's counts since the last time. Counts that cannot be stored are added back."""
    counts = take_counts()
    if not counts:
        return
    try:
        _add(counts)
    except DatabaseError as fault:
        logger.warning("unknown_names_not_stored", fault=type(fault).__name__)
        for (kind, name), count in counts.items():
            note_unknown(kind, name, count=count)


def _add(counts: Mapping[tuple[str, str], int]) -> None:
    with durable():
        now = database_now()
        stored = set(UnknownName.objects.values_list("kind", "name"))
        room = ROWS_MAX - len(stored)
        added: Counter[tuple[str, str]] = Counter()
        for (kind, name), count in sorted(counts.items()):
            is_new = (kind, name) not in stored and (kind, name) not in added
            if is_new and room <= 0:
                name = OTHERS
            room -= is_new
            added[kind, name] += count
        with connection.cursor() as cursor:
            # In sorted order, so that two processes wait for one another and never deadlock.
            moment = connection.ops.adapt_datetimefield_value(now)
            cursor.executemany(ADD, [(*key, added[key], moment, moment) for key in sorted(added)])


@functools.cache
def _start(pid: int) -> None:
    """Start one thread for each process: a forked child does not inherit its parent's."""
    threading.Thread(target=store_until, args=(threading.Event(),), name="unknown-names", daemon=True).start()


def store_until(stopped: threading.Event) -> None:
    """Store this process's counts every few seconds."""
    while not stopped.wait(STORE_SECONDS):
        try:
            store()
        except Exception:
            logger.exception("unknown_names_not_stored")
        finally:
            connection.close()
