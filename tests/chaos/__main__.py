"""`python -m tests.chaos`: disturb a whole Rensei as a seed says, and see whether its ledger explains every call."""

import argparse
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.chaos import plan, stack

FIRST = 20
PLANTS = ("double-settlement", "missing-charge")


def main() -> int:
    options = _read_options()
    planned = plan.draw(
        seed=options.seed,
        runs=options.runs,
        kills=options.kills,
        restarts_database=options.database == "postgres",
        restarts_broker=options.celery,
    )
    commit = _commit()
    print(f"SEED={options.seed} COMMIT={commit} PLAN={planned.digest}", flush=True)
    began = time.monotonic()
    with stack.start(
        database=options.database, celery=options.celery, plant=options.plant, copy_of=options.copy_of
    ) as running:
        found, report = _run(planned, running, options)
        if found:
            kept = Path(tempfile.gettempdir()) / f"chaos-{options.seed}.log"
            shutil.copy(running.folder / "workers.log", kept)
    report |= {"commit": commit, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(report))
    print(_summary(report))
    if found:
        print(f"SEED={options.seed} COMMIT={commit} does not agree; the workers' log is {kept}.")
        print("\n".join(found[:FIRST]))
    return 1 if found else 0


def _run(planned: plan.Plan, running: stack.Stack, options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Carry the plan out, and give what does not agree with the counts of everything."""
    import django

    django.setup()
    from tests.chaos import verdict, world
    from tests.chaos.driver import Driver

    owners = world.build(shared_runs=max(2, options.runs // 20))
    driver = Driver(plan=planned, stack=running, owners=owners, hurry=options.hurry)
    found: list[str] = []
    try:
        driver.carry_out()
    except TimeoutError as fault:
        found.append(f"gave up waiting: {fault}")
    calls = running.calls()
    found += driver.findings + verdict.differences(calls)
    return found, {
        "seed": options.seed,
        "plan": planned.digest,
        "database": options.database,
        "celery": options.celery,
        "hurry": options.hurry,
        "plant": options.plant,
        "done": dict(sorted(driver.done.items())),
        "refused": dict(sorted(driver.refused.items())),
        **verdict.totals(calls),
        "differences": len(found),
    }


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="draws the plan; by default random")
    parser.add_argument("--runs", type=int, default=300, help="dispatches (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=30, help="kill -9 of a worker (default: %(default)s)")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--celery", action="store_true", help="execute the runs by Celery, with Redis as the broker")
    parser.add_argument("--copy-of", type=Path, help="a migrated database to begin with, which the suite has")
    parser.add_argument("--hurry", action="store_true", help="end the leases of dead workers instead of waiting")
    parser.add_argument("--plant", choices=PLANTS, default="", help="plant a defect, which has to be found")
    return parser.parse_args()


def _summary(report: dict[str, Any]) -> str:
    done = report["done"]
    disturbances = ", ".join(f"{name} {count}" for name, count in done.items() if name != "runs")
    return (
        f"{done.get('runs', 0)} runs in {report['seconds']:.0f} s on {report['database']}"
        f"{' with Celery' if report['celery'] else ''}, disturbed by: {disturbances}.\n"
        f"{report['calls']} calls, {report['attempts']} attempts: {report['settled']} settled, "
        f"{report['indeterminate']} indeterminate, {report['never-sent']} never sent.\n"
        f"{report['charges']} charges, {report['adjustments']} adjustments, {report['differences']} differences."
    )


def _commit() -> str:
    """Name the commit that is being tried, and say if it is not quite that."""
    root = Path(__file__).parents[2]
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=root, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
