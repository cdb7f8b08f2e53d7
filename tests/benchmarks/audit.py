"""
`python -m tests.benchmarks.audit`: how long a large ledger takes to be sealed, verified and audited, and in how much
memory.

The runs are settled as any others, and then copied by the database, with all that belongs to them, so the audit of the
whole has to find nothing. It runs on SQLite and, where it is installed, on PostgreSQL.
"""

import argparse
import multiprocessing
import resource
import secrets
import time
from datetime import datetime, timedelta
from typing import Any

from tests.benchmarks import databases

SETTLED = 1_000
# What makes a row one of its own. All else of a copy is as in the row that it was made from.
IDS = frozenset({"id", "run_id", "attempt_id"})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.audit", description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000, help="in the ledger (default: %(default)s)")
    options = parser.parse_args()
    for name, url in databases.here():
        # Spawned, because each database needs a process that has seen no other.
        with multiprocessing.get_context("spawn").Pool(1, initializer=databases.set_up, initargs=(url,)) as pool:
            pool.apply(_fill, (options.lines,))
        with multiprocessing.get_context("spawn").Pool(1, initializer=databases.set_up, initargs=(url,)) as pool:
            print(name, *(f"{key} {value}" for key, value in pool.apply(_measure).items()), sep=", ", flush=True)


def _fill(lines: int) -> None:
    from django.core.management import call_command

    from rensei.orgs import services as orgs
    from rensei.orgs.models import User

    call_command("migrate", interactive=False, verbosity=0)
    owner = User.objects.create_user("ada@acme.test", secrets.token_hex(12))
    org = orgs.create_org(name="Acme", slug="acme", owner=owner)
    _settle(org, count=min(lines, SETTLED))
    _copy(lines // min(lines, SETTLED) - 1)


def _settle(org: Any, *, count: int) -> None:
    """Write runs of the last 90 days, and settle each by its one call."""
    from rensei.core.clock import database_now
    from rensei.core.usage import Usage
    from rensei.dispatch.models import Attempt, Run
    from rensei.dispatch.settlement import settle
    from rensei.dispatch.settlement.settle import RunEnd, SettlementPlan
    from tests.billing.conftest import PRICES

    def plan(number: int, moment: datetime) -> SettlementPlan:
        run = Run.objects.create(
            org=org,
            profile_id="prof_deep",
            profile_name="deep",
            provider="claude",
            model_id="claude-opus-5-5",
            served_model_id="claude-opus-5-5",
            auth_mode="byok",
            payer="organization",
            max_tokens=1000,
            prices=[PRICES.as_dict()],
            state=Run.State.RUNNING,
            epoch=1,
            attempt_count=1,
            deadline_at=moment,
            created_at=moment,
        )
        attempt = Attempt.objects.create(run=run, number=1, epoch=1, input_tokens_estimate=1, started_at=moment)
        usage = Usage(input_tokens=500 + number % 100, output_tokens=50 + number % 10)
        return SettlementPlan(run=run, attempt=attempt, now=moment, usage=usage, end=RunEnd(state=Run.State.SUCCEEDED))

    now = database_now()
    settle.write([plan(number, now - timedelta(days=90) * number / count) for number in range(count)])


def _copy(copies: int) -> None:
    """Have the database copy every run so often, with its attempt and its line, and multiply the sums."""
    from django.db import connection

    from billing.ledger.roll_ups import SUMS
    from billing.models import CostEvent, UsageDaily
    from rensei.dispatch.models import Attempt, Run

    numbers = "WITH RECURSIVE copy(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM copy WHERE number < %s)"
    with connection.cursor() as cursor:
        for model in (Run, Attempt, CostEvent):
            columns = [str(field.column) for field in model._meta.concrete_fields]
            table = model._meta.db_table
            copied = [f"{table}.{name}" + (" || '_' || copy.number" if name in IDS else "") for name in columns]
            cursor.execute(
                f"{numbers} INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(copied)} FROM {table}, copy",
                [copies],
            )
        sums = ", ".join(f"{name} = {name} * {copies + 1}" for name in SUMS)
        cursor.execute(f"UPDATE {UsageDaily._meta.db_table} SET {sums}")
        cursor.execute("ANALYZE")


def _measure() -> dict[str, str]:
    from billing.integrity import seals, verification
    from billing.models import CostEvent, LineToSeal
    from rensei.dispatch.settlement.audit import audit

    lines = CostEvent.objects.count()
    began = time.monotonic()
    while LineToSeal.objects.exists():
        seals.seal()
    sealed = time.monotonic()
    found = sum(1 for _ in verification.differences())
    verified = time.monotonic()
    audited = audit()
    return {
        "lines": f"{lines:,}",
        "sealed in": f"{sealed - began:.0f} s ({lines / (sealed - began):,.0f} a second)",
        "seals verified in": f"{verified - sealed:.0f} s",
        "audited, seals included, in": f"{time.monotonic() - verified:.0f} s",
        "differences": str(found + audited.difference_count),
        "memory at most": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB",
    }


if __name__ == "__main__":
    main()
