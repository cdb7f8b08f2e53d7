"""
Choose the run to claim next: organizations take turns, and within an organization its projects take turns.

Among the organizations with queued runs, the order is: fewest executing runs, then oldest last claim, then longest
wait. Its projects take turns by their numbers, beginning after the one of its last claim: the first without an
executing run is chosen, or else the one with the fewest. Two limits bound an organization: its number of executing runs
(set by operators), and the threads or sandboxes of one worker that its runs may hold. A worker's last free one goes to
an organization that holds none, so that no few of them hold all. Runs in sandboxes and other runs wait separately, in
the same order. Those whose pool has no free slot are passed over, one by one.

Each step from one organization or project to the next is one lookup in an index of the queued runs, so a choice costs
the same for 10 queued runs of an organization as for 10,000. The steps end at the first project without an executing
run, so there are at most as many as executing runs, whatever the number of projects.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from django.conf import settings
from django.db import connection

from rensei.core.limits import limit
from rensei.dispatch.pools import slots

limit(
    "two thirds of them, rounded up, and the last free one only where it holds none",
    what="Threads of one worker process that runs of one organization hold",
    told="the run: it stays queued until one of them ends",
    setting="RENSEI_WORKER_THREADS_PER_ORG",
)

# The conditions of the partial indexes in `models.py`, in the same form: SQLite compares them term by term.
_IN_SANDBOX = "run.in_sandbox = %(in_sandbox)s"
_WAITING = f"{_IN_SANDBOX} AND run.state = 'QUEUED' AND NOT (run.auth_mode = 'host-session')"
_IN_TIME = "run.deadline_at > %(now)s"
# A run whose worker died has an expired lease. It is not counted, so it does not block other runs.
_UNDER_WAY = """
    SELECT COUNT(*) FROM dispatch_run run
    WHERE run.state = 'RUNNING' AND run.via = 'queue' AND NOT (run.auth_mode = 'host-session')
    AND run.lease_until > %(now)s"""

# A transaction that claims for an organization locks its row; other transactions skip that organization meanwhile.
_ORGANIZATION = f"""
WITH RECURSIVE waiting(org_id) AS (
    SELECT MIN(run.org_id) FROM dispatch_run run WHERE {_WAITING}
    UNION ALL
    SELECT (SELECT MIN(run.org_id) FROM dispatch_run run WHERE {_WAITING} AND run.org_id > waiting.org_id)
    FROM waiting WHERE waiting.org_id IS NOT NULL
), standing AS (
    SELECT waiting.org_id,
        (SELECT MIN(run.deadline_at) FROM dispatch_run run
            WHERE {_WAITING} AND run.org_id = waiting.org_id AND {_IN_TIME}) AS first_deadline,
        ({_UNDER_WAY} AND run.org_id = waiting.org_id) AS under_way,
        ({_UNDER_WAY} AND run.org_id = waiting.org_id AND run.lease_owner = %(owner)s) AS held_by_owner,
        (SELECT MAX(turn.claimed_at) FROM dispatch_turn turn WHERE turn.org_id = waiting.org_id) AS claimed_at
    FROM waiting WHERE waiting.org_id IS NOT NULL
)
SELECT org.id FROM standing
JOIN orgs_org org ON org.id = standing.org_id
LEFT JOIN billing_entitlement entitlement ON entitlement.org_id = org.id
WHERE standing.first_deadline IS NOT NULL AND org.deleting_at IS NULL
    AND standing.under_way < COALESCE(entitlement.runs_at_once, %(runs_at_once)s)
    AND standing.held_by_owner < %(held_at_most)s
ORDER BY standing.under_way, standing.claimed_at NULLS FIRST, standing.first_deadline
LIMIT 1
"""  # noqa: S608 - it is made of constants alone
_LOCK = "FOR NO KEY UPDATE OF org SKIP LOCKED"

_NEXT_PROJECT = f"""
    SELECT MIN(COALESCE(run.project_id, 0)) FROM dispatch_run run
    WHERE {_WAITING} AND run.org_id = %(org_id)s AND COALESCE(run.project_id, 0) >"""  # noqa: S608 - see above
_UNDER_WAY_OF_PROJECT = f"""{_UNDER_WAY} AND run.in_sandbox = %(in_sandbox)s AND run.org_id = %(org_id)s
    AND COALESCE(run.project_id, 0) = waiting.project"""
_FIRST_RUN = f"""
    SELECT run.id FROM dispatch_run run
    WHERE {_WAITING} AND run.org_id = %(org_id)s AND COALESCE(run.project_id, 0) = waiting.project
        AND {_IN_TIME}
    ORDER BY run.deadline_at, run.id LIMIT 1"""  # noqa: S608 - see above

# This statement starts after the organization's row is locked, so it includes the previous claim and counts again.
# Lap 0 begins after the project of the last claim, and lap 1 at the first one. A project whose runs are all past their
# deadline is passed over.
_RUN = f"""
WITH RECURSIVE waiting(lap, project) AS (
    SELECT 0, ({_NEXT_PROJECT} COALESCE(
        (SELECT turn.project_number FROM dispatch_turn turn
            WHERE turn.org_id = %(org_id)s AND turn.in_sandbox = %(in_sandbox)s
            ORDER BY turn.claimed_at DESC LIMIT 1), -1))
    UNION ALL
    SELECT waiting.lap + CASE WHEN waiting.project IS NULL THEN 1 ELSE 0 END,
        ({_NEXT_PROJECT} COALESCE(waiting.project, -1))
    FROM waiting
    WHERE CASE WHEN waiting.project IS NULL THEN waiting.lap = 0
        ELSE ({_UNDER_WAY_OF_PROJECT}) > 0 OR ({_FIRST_RUN}) IS NULL END
), standing AS (
    SELECT waiting.lap, waiting.project, ({_FIRST_RUN}) AS run_id, ({_UNDER_WAY_OF_PROJECT}) AS under_way
    FROM waiting WHERE waiting.project IS NOT NULL
)
SELECT standing.run_id, standing.project FROM standing
WHERE standing.run_id IS NOT NULL
    AND ({_UNDER_WAY} AND run.org_id = %(org_id)s)
        < COALESCE((SELECT runs_at_once FROM billing_entitlement WHERE org_id = %(org_id)s), %(runs_at_once)s)
ORDER BY standing.under_way, standing.lap, standing.project
LIMIT 1
"""  # noqa: S608 - it is made of constants alone


_ANY = f"SELECT 1 FROM dispatch_run run WHERE {_WAITING} LIMIT 1"  # noqa: S608 - it is made of constants alone


class Queue(Enum):
    """
    Which of the queued runs: those of the workers' threads, those of sandboxes, or of these only those in clouds.

    A worker that cannot isolate programs takes the last. It steps over the others one by one, which costs something
    where such workers are beside those that can.
    """

    PLAIN = "plain"
    SANDBOXES = "sandboxes"
    CLOUDS = "clouds"

    @property
    def in_sandbox(self) -> bool:
        return self is not Queue.PLAIN

    def sql(self, statement: str) -> str:
        is_narrow = self is Queue.CLOUDS
        return statement.replace(_IN_SANDBOX, f"{_IN_SANDBOX} AND run.in_cloud") if is_narrow else statement

    def passing_over(self, statement: str, *, now: datetime, org_id: str | None = None) -> tuple[str, dict[str, str]]:
        """Let a statement choose no run of a full pool. Its organization, or its project, may have others."""
        full = slots.full(now=now, org_id=org_id) if self.in_sandbox else []
        if not full:
            return self.sql(statement), {}
        pairs = ", ".join(f"(%(full_org_{place})s, %(full_pool_{place})s)" for place in range(len(full)))
        values: dict[str, str] = {}
        for place, (org, pool) in enumerate(full):
            values |= {f"full_org_{place}": org, f"full_pool_{place}": pool}
        has_slot = f"{_IN_TIME} AND (run.org_id, run.pool) NOT IN (VALUES {pairs})"
        return self.sql(statement).replace(_IN_TIME, has_slot), values


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen run. A run without a project has the project number 0."""

    run_id: str
    org_id: str
    project_number: int
    in_sandbox: bool


def choose(queue: Queue, *, owner: str, now: datetime, held_at_most: int) -> Choice | None:
    """
    Choose the run that this lease owner claims next, inside the transaction that claims it.

    :param held_at_most: how many of the owner's threads or sandboxes the runs of one organization hold afterwards

    Returns None if no queued run may start, or if all such runs belong to an organization for which another worker is
    claiming at this moment.
    """
    values = {
        "now": connection.ops.adapt_datetimefield_value(now),
        "owner": owner,
        "held_at_most": held_at_most,
        "in_sandbox": queue.in_sandbox,
        "runs_at_once": settings.RENSEI_ORG_RUNS_AT_ONCE,
    }
    skips_locked = connection.features.has_select_for_update_skip_locked
    statement, full = queue.passing_over(_ORGANIZATION, now=now)
    found = _first(f"{statement} {_LOCK}" if skips_locked else statement, values | full)
    if found is None:
        return None
    (org_id,) = found
    # Counted again: the lock has waited for the claim before this one.
    statement, full = queue.passing_over(_RUN, now=now, org_id=org_id)
    found = _first(statement, values | full | {"org_id": org_id})
    if found is None:
        return None
    run_id, project_number = found
    return Choice(run_id=run_id, org_id=org_id, project_number=project_number, in_sandbox=queue.in_sandbox)


def is_any_waiting(queue: Queue) -> bool:
    """Return whether a run is queued for a server worker. Idle workers ask often, so it is plain SQL."""
    return _first(queue.sql(_ANY), {"in_sandbox": queue.in_sandbox}) is not None


def _first(sql: str, values: dict[str, Any]) -> tuple[Any, ...] | None:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        row: tuple[Any, ...] | None = cursor.fetchone()
        return row
