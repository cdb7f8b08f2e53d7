"""Everything that a benchmark runs on: a database, the stand-in upstream, Rensei, and whom it is compared with."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests import servers
from tests.benchmarks import contenders, processes, world
from tests.benchmarks.contenders import Contender
from tests.benchmarks.processes import DidNotStart
from tests.benchmarks.verdict import Auditor
from tests.benchmarks.world import World

OTHERS = ("bare", "portkey", "litellm")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is running. `missing` says why a contender is not."""

    contenders: dict[str, Contender]
    missing: dict[str, str]
    world: World
    auditor: Auditor
    database_url: str
    database_pid: int
    database_version: str
    idle_memory_bytes: dict[str, int]
    start_worker: Callable[[], None]
    stop_worker: Callable[[], None]
    environment: dict[str, str] = field(repr=False)


@contextlib.contextmanager
def start(*, seed: int, others: tuple[str, ...], copy_of: Path | None) -> Iterator[Stage]:
    """
    Start everything but the worker, in an empty folder, and point this process's settings at it.

    :param copy_of: the files of a PostgreSQL to begin with, instead of an empty one
    """
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="rensei-bench-")))
        # An answer to a commit means that it survives the death of any process, as it does in production.
        database = running.enter_context(servers.run_postgres(synchronous_commit="on", copy_of=copy_of))
        upstream = running.enter_context(contenders.start_upstream(folder, seed=seed))
        environment = world.environment_for(database_url=database.url, upstream=upstream.url, folder=folder)
        world.prepare(environment)
        os.environ |= environment
        import django

        django.setup()
        made = world.build()
        started = {
            "direct": upstream,
            "rensei": running.enter_context(contenders.start_rensei(folder, environment=environment, token=made.token)),
        }
        found, missing = _start_others(running, folder, upstream=upstream.url, others=others)
        started |= found
        auditor = Auditor(database_url=database.url, upstream_url=upstream.url)
        running.callback(auditor.close)
        worker = running.enter_context(ExitStack())
        pid, version = _database(database.url)
        yield Stage(
            contenders=started,
            missing=missing,
            world=made,
            auditor=auditor,
            database_url=database.url,
            database_pid=pid,
            database_version=version,
            idle_memory_bytes={name: processes.cost_of(each.pid).memory_bytes for name, each in started.items()},
            start_worker=lambda: _enter(worker, contenders.start_worker(folder, environment=environment)),
            stop_worker=worker.close,
            environment=environment,
        )


def _start_others(
    running: ExitStack, folder: Path, *, upstream: str, others: tuple[str, ...]
) -> tuple[dict[str, Contender], dict[str, str]]:
    how = {
        "bare": contenders.start_passthrough,
        "portkey": contenders.start_portkey,
        "litellm": contenders.start_litellm,
    }
    found: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    for name in others:
        try:
            found[name] = running.enter_context(how[name](folder, upstream=upstream))
        except DidNotStart as fault:
            missing[name] = str(fault)
    return found, missing


def _enter(stack: ExitStack, manager: contextlib.AbstractContextManager[int]) -> None:
    stack.enter_context(manager)


def _database(url: str) -> tuple[int, str]:
    """Find the process that all others of the database are children of, and its version."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT current_setting('server_version')").fetchone()
        assert row is not None
        return processes.parent_of(connection.info.backend_pid), str(row[0]).split()[0]
