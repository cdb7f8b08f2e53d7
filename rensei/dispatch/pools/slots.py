"""
The slots of a capacity pool: how many sandboxes of it run at once, for one organization.

A slot is taken by a claimed run, by its sandbox until that has ended, and by a sandbox that may have been left: until
its provider has ended it by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection

from rensei.core.clock import database_now
from rensei.dispatch.models import CapacityPool, Run

# A provider ends a sandbox by itself this long after the deadline of its run, or before.
ENDS_AFTER_DEADLINE = timedelta(minutes=1)

# The conditions of partial indexes in the same form: SQLite compares them term by term.
_TAKEN = """
SELECT taken.org_id, taken.pool, COUNT(*)
FROM (
    SELECT box.org_id, box.pool
    FROM dispatch_sandbox box LEFT JOIN dispatch_run run ON run.id = box.run_id
    WHERE box.ended_at IS NULL AND COALESCE(run.deadline_at, box.ends_at) > %(gone)s {of_box}
    UNION ALL
    SELECT run.org_id, run.pool
    FROM dispatch_run run
    WHERE run.state = 'RUNNING' AND run.via = 'queue' AND NOT (run.auth_mode = 'host-session') AND run.in_sandbox
        AND NOT EXISTS (SELECT 1 FROM dispatch_sandbox box WHERE box.run_id = run.id AND box.epoch = run.epoch) {of_run}
) taken
GROUP BY taken.org_id, taken.pool
"""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The slots of one pool, and how many are taken."""

    slots: int
    taken: int

    @property
    def are_full(self) -> bool:
        return self.taken >= self.slots


def of_config(config: Mapping[str, Any]) -> int:
    """Return the slots of a pool. A value that was stored before it was checked counts as not given."""
    given = config.get("slots")
    return given if type(given) is int and given > 0 else settings.RENSEI_POOL_SLOTS


def taken(*, now: datetime, org_id: str | None = None) -> dict[tuple[str, str], Slots]:
    """Return the slots of each pool of which some are taken, by organization and name: of all, or of one."""
    values: dict[str, Any] = {"gone": connection.ops.adapt_datetimefield_value(now - ENDS_AFTER_DEADLINE)}
    of_box = of_run = ""
    if org_id is not None:
        values["org_id"] = org_id
        of_box, of_run = "AND box.org_id = %(org_id)s", "AND run.org_id = %(org_id)s"
    with connection.cursor() as cursor:
        cursor.execute(_TAKEN.format(of_box=of_box, of_run=of_run), values)
        rows = cursor.fetchall()
    if not rows:
        return {}
    made = CapacityPool.objects.filter(org__in={org for org, _, _ in rows}, name__in={pool for _, pool, _ in rows})
    config_of = {(org, pool): config for org, pool, config in made.values_list("org_id", "name", "config")}
    return {
        (org, pool): Slots(slots=of_config(config_of.get((org, pool), {})), taken=count) for org, pool, count in rows
    }


def full(*, now: datetime, org_id: str | None = None) -> list[tuple[str, str]]:
    """Return the full pools by organization and name."""
    return sorted(pool for pool, slots in taken(now=now, org_id=org_id).items() if slots.are_full)


def of_pool(org_id: str, pool: str, *, now: datetime) -> Slots:
    found = taken(now=now, org_id=org_id).get((org_id, pool))
    if found is not None:
        return found
    config = CapacityPool.objects.filter(org_id=org_id, name=pool).values_list("config", flat=True).first()
    return Slots(slots=of_config(config or {}), taken=0)


def why_waiting(run: Run) -> str | None:
    """Return why a queued run waits for its pool, as a sentence, or None if it does not."""
    if run.state != Run.State.QUEUED or not run.in_sandbox:
        return None
    found = of_pool(run.org_id, run.pool, now=database_now())
    return sentence(run.pool, found) if found.are_full else None


def sentence(pool: str, slots: Slots) -> str:
    if slots.slots == 1:
        return f"The only slot of the pool '{pool}' is taken."
    return f"All {slots.slots} slots of the pool '{pool}' are taken."
