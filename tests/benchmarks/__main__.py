"""
`python -m tests.benchmarks`: measure Rensei beside others, on the same machine and the same stand-in upstream.

After each load, every call that the upstream served must be in the ledger exactly once, or nothing is reported.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import loads, report, stage
from tests.benchmarks.measures import Bench
from tests.benchmarks.processes import ROOT
from tests.benchmarks.verdict import Void

PARTS = ("throughput", "streams", "latency", "memory", "modes", "rooms")
DOCUMENT = ROOT / "docs" / "benchmarks.md"


def main() -> int:
    options = _read_options()
    began = time.monotonic()
    load_average = os.getloadavg()[0]
    print(f"SEED={options.seed} COMMIT={_commit()} wrk={'yes' if loads.has_wrk() else 'no'}", flush=True)
    try:
        with stage.start(seed=options.seed, others=tuple(options.contenders), copy_of=options.copy_of) as running:
            results = _measure(running, options)
    except Void as fault:
        print(f"VOID: {fault}", file=sys.stderr)
        return 1
    results |= {
        "seed": options.seed,
        "commit": _commit(),
        "load_average": load_average,
        "wrk": loads.has_wrk(),
        "seconds": options.seconds,
        "rounds": options.rounds,
        "connections": options.connections,
        "open_streams": options.open_streams,
        "ledger_lines": options.ledger_lines,
        "worker": not options.without_worker,
        "took_seconds": time.monotonic() - began,
    }
    text = report.render(results)
    print(text)
    if options.output:
        options.output.write_text(text)
    if options.json:
        options.json.write_text(json.dumps(results, default=_plain, indent=1))
    return 0


def _measure(running: stage.Stage, options: argparse.Namespace) -> dict[str, Any]:
    # The rooms import models, which need the settings that the stage has just made.
    from tests.benchmarks import rooms

    bench = Bench(
        contenders=running.contenders,
        database_pid=running.database_pid,
        auditor=running.auditor,
        seed=options.seed,
        seconds=options.seconds,
        rounds=options.rounds,
        connections=options.connections,
        say=lambda text: print(text, flush=True),
    )
    found: dict[str, Any] = {
        "missing": running.missing,
        "idle_memory_bytes": running.idle_memory_bytes,
        "database_version": running.database_version,
        "commits": rooms.commits(running.database_url, seconds=min(2.0, options.seconds)),
    }
    if not options.without_worker:
        running.start_worker()
    bench.warm_up()
    if "throughput" in options.parts:
        found["plain"] = bench.throughput("plain")
    if "streams" in options.parts:
        found["streams"] = bench.throughput("stream")
    if "latency" in options.parts:
        found["latency"] = bench.latency()
        found["first_events"] = bench.first_events()
    if "memory" in options.parts:
        found["memory"] = bench.memory(count=options.open_streams)
    if "modes" in options.parts:
        found["modes"] = bench.modes(running.world.profiles)
    running.stop_worker()
    if options.plant:
        running.auditor.plant_stray_call()
    found["agreement"] = running.auditor.check()
    if "rooms" in options.parts:
        found["rooms"] = _measure_rooms(running, options)
    return found


def _measure_rooms(running: stage.Stage, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the rooms, audit the whole ledger once, and only then fill it with lines that have no runs."""
    from rensei.dispatch.settlement import audit
    from tests.benchmarks import rooms

    world, seconds = running.world, min(1.0, options.seconds)
    seal, opening = rooms.sealing(world, seconds=seconds)
    found: dict[str, Any] = {
        "resolve": rooms.resolving(world, seconds=seconds),
        "seal": seal,
        "open": opening,
        "admit": rooms.admitting(world, count=options.queued_runs),
    }
    running.start_worker()
    found["execute"] = rooms.executing()
    found["alone"] = rooms.alone(world, count=options.queued_runs // 10)
    running.stop_worker()
    found["agreement"] = running.auditor.check()
    began = time.monotonic()
    result = audit.audit()
    if result.difference_count:
        raise Void(f"The audit found {result.difference_count} differences: {result.first_differences[:3]}")
    found["audit_seconds"] = time.monotonic() - began
    found["audited_runs"] = rooms.count_runs()
    rensei = running.contenders["rensei"]
    found["pages"] = rooms.pages(url=rensei.url, lines=options.ledger_lines, repeats=options.page_repeats)
    print(f"  pages over {options.ledger_lines} lines are read", flush=True)
    return found


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="makes the requests and the answers (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="by default all")
    parser.add_argument(
        "--contenders", nargs="*", choices=stage.OTHERS, default=list(stage.OTHERS), help="whom to compare with"
    )
    parser.add_argument("--seconds", type=float, help="of each load")
    parser.add_argument("--rounds", type=int, help="of the loads whose rates are compared; the median counts")
    parser.add_argument("--connections", type=int, default=32, help="of those loads (default: %(default)s)")
    parser.add_argument("--open-streams", type=int, help="slow streams that are open at once")
    parser.add_argument("--queued-runs", type=int, help="dispatched through the queue")
    parser.add_argument("--ledger-lines", type=int, help="under the pages that are read")
    parser.add_argument("--page-repeats", type=int, default=20, help="of each page (default: %(default)s)")
    parser.add_argument("--without-worker", action="store_true", help="load the web server with no worker beside it")
    parser.add_argument("--copy-of", type=Path, help="a migrated PostgreSQL to begin with, which the suite has")
    parser.add_argument("--quick", action="store_true", help="a short look at everything, which is written nowhere")
    parser.add_argument("--plant", action="store_true", help="plant a call that no ledger knows, which has to be found")
    parser.add_argument("--output", type=Path, help="where to write the report (default: docs/benchmarks.md)")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args()
    whole = {"seconds": 4.0, "rounds": 3, "open_streams": 1000, "queued_runs": 300, "ledger_lines": 1_000_000}
    quick = {"seconds": 1.0, "rounds": 1, "open_streams": 100, "queued_runs": 50, "ledger_lines": 20_000}
    for name, value in (quick if options.quick else whole).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    # Only a whole run may take the place of the last one.
    if options.output is None and not options.quick and set(options.parts) == set(PARTS):
        options.output = DOCUMENT
    return options


def _commit() -> str:
    """Name the commit that is measured, and say if it is not quite that."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(type(value))


if __name__ == "__main__":
    sys.exit(main())
