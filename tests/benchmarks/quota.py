"""
`python -m tests.benchmarks.quota`: how many tries per second the shared quota takes from processes side by side.

Half of the tries fit into the limit. The oversell is what was granted beyond it, which must be 0. It runs on SQLite
and, where it is installed, on PostgreSQL, each in a database of its own.
"""

import argparse
import multiprocessing
import secrets
import time
from datetime import UTC, datetime
from typing import Any

from tests.benchmarks import databases

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
# Python's processes start slowly on a busy machine, and all begin together.
START_SECONDS_MAX = 300


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quota", description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--tries", type=int, default=2000, help="of each process (default: %(default)s)")
    options = parser.parse_args()
    for name, url in databases.here():
        _measure(name, url, processes=options.processes, tries=options.tries)


def _measure(name: str, url: str, *, processes: int, tries: int) -> None:
    # Spawned, because a forked process would take the parent's settings and connections along.
    spawn = multiprocessing.get_context("spawn")
    limit = processes * tries // 2
    with spawn.Pool(1, initializer=_begin, initargs=(url, None)) as pool:
        org_id = pool.apply(_prepare, (limit,))
    together = spawn.Barrier(processes)
    with spawn.Pool(processes, initializer=_begin, initargs=(url, together)) as pool:
        done = pool.starmap(_contend, [(org_id, place, tries) for place in range(processes)], chunksize=1)
        held = pool.apply(_held, (org_id,))
    granted = sum(count for count, _, _ in done)
    seconds = max(ended for _, _, ended in done) - min(began for _, began, _ in done)
    print(f"{name}: {processes * tries} tries of {processes} processes in {seconds:.1f} s", end=", ")
    print(f"{processes * tries / seconds:.0f} per second; limit {limit}, granted {granted}, held {held}", end=", ")
    print(f"oversell {max(granted, held) - limit}", flush=True)


_together: Any = None


def _begin(url: str, together: Any) -> None:
    global _together
    _together = together
    databases.set_up(url)


def _prepare(limit: int) -> str:
    from django.core.management import call_command

    from billing.models import Entitlement
    from rensei.orgs import services as orgs
    from rensei.orgs.models import User

    call_command("migrate", interactive=False, verbosity=0)
    owner = User.objects.create_user("ada@acme.test", secrets.token_hex(12))
    org = orgs.create_org(name="Acme", slug="acme", owner=owner)
    Entitlement.objects.filter(org=org).update(shared_runs_per_day=limit)
    return str(org.pk)


def _contend(org_id: str, place: int, tries: int) -> tuple[int, float, float]:
    """Try so often, one transaction each, and give what was granted, with begin and end."""
    from billing.limits.quota import SharedQuotaExceeded, take_shared_run
    from rensei.core.transactions import durable

    _together.wait(timeout=START_SECONDS_MAX)
    began, granted = time.monotonic(), 0
    for number in range(tries):
        try:
            with durable():
                take_shared_run(org_id=org_id, run_id=f"run_{place}_{number}", now=NOON)
            granted += 1
        except SharedQuotaExceeded:
            pass
    return granted, began, time.monotonic()


def _held(org_id: str) -> int:
    from billing.models import SharedUsage

    return int(SharedUsage.objects.get(org_id=org_id).held)


if __name__ == "__main__":
    main()
