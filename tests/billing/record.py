"""Ledger lines without a run, counted as a settlement counts them."""

from collections.abc import Iterable
from typing import Any

from django.db import transaction

from billing.ledger import capacity, roll_ups
from billing.ledger.capacity import SandboxUse
from billing.ledger.charges import Charge, write_adjustment, write_charges
from billing.limits import budget
from billing.models import CostEvent
from rensei.core.clock import database_now
from rensei.core.ids import new_id
from rensei.orgs.models import Org


def record_charges(charges: Iterable[Charge]) -> list[CostEvent]:
    """Write one line for each call, and count it, in the caller's transaction."""
    return _counted(write_charges(charges))


def record_adjustment(**correction: Any) -> CostEvent:
    """Correct a charge, and count the correction. Returns the line at the final prices."""
    return _counted(write_adjustment(**correction))[-1]


def capacity_line(org: Org, **fields: Any) -> CostEvent:
    """Record 90 seconds of a sandbox with 2 vCPU and 512 MiB at E2B, which is 27,225 ten-millionths of a dollar."""
    use = {
        "org_id": org.pk,
        "run_id": new_id("run"),
        "sandbox_id": new_id("box"),
        "profile_id": "prof_deep",
        "project_id": "",
        "pool": "e2b",
        "provider": "e2b",
        "credential_id": "",
        "seconds": 90,
        "second_picodollars": 30_250_000,
        "estimated": False,
        "occurred_at": database_now(),
    }
    with transaction.atomic():
        (line,) = _counted(capacity.write_lines([SandboxUse(**{**use, **fields})]))
    return line


def _counted(lines: list[CostEvent]) -> list[CostEvent]:
    budget.add_billed(lines)
    roll_ups.add(lines)
    return lines
