"""
Chooses the run that is claimed next: the organizations take turns, and within one of them its projects.

Among the organizations with waiting runs, the one with the fewest runs under way comes first, then the one whose last
claim is longest ago, then the one that waits longest; likewise among its projects. Two limits hold an organization
back: how many of its runs may be under way (operators set it), and how many of one worker's threads they may hold.

Each step from one organization or project to the next is one look into an index of the waiting runs, so a choice costs
as much with 10 waiting runs of an organization as with 10,000.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connection

from rensei.core.limits import limit

limit(
    "two thirds of them, rounded up",
    what="Threads of one worker process that runs of one organization hold",
    told="the run: it stays queued until one of them ends",
    setting="RENSEI_WORKER_THREADS_PER_ORG",
)

# The conditions of the partial indexes in `models.py`, in their words: SQLite compares them term by term.
_WAITING = "run.state = 'QUEUED' AND NOT (run.auth_mode = 'host-session')"
# The lease of a run whose worker died is over, and holds up no other run.
_UNDER_WAY = """
    SELECT COUNT(*) FROM dispatch_run run
    WHERE run.state = 'RUNNING' AND run.via = 'queue' AND NOT (run.auth_mode = 'host-session')
    AND run.lease_until > %(now)s"""

# A transaction that holds an organization's row is claiming for it, and the next one takes its turn after it.
_ORGANIZATION = f"""
WITH RECURSIVE waiting(org_id) AS (
    SELECT MIN(run.org_id) FROM dispatch_run run WHERE {_WAITING}
    UNION ALL
    SELECT (SELECT MIN(run.org_id) FROM dispatch_run run WHERE {_WAITING} AND run.org_id > waiting.org_id)
    FROM waiting WHERE waiting.org_id IS NOT NULL
), standing AS (
    SELECT waiting.org_id,
        (SELECT MIN(run.deadline_at) FROM dispatch_run run
            WHERE {_WAITING} AND run.org_id = waiting.org_id AND run.deadline_at > %(now)s) AS first_deadline,
        ({_UNDER_WAY} AND run.org_id = waiting.org_id) AS under_way,
        ({_UNDER_WAY} AND run.org_id = waiting.org_id AND run.lease_owner = %(owner)s) AS held_by_owner,
        (SELECT MAX(turn.claimed_at) FROM dispatch_turn turn WHERE turn.org_id = waiting.org_id) AS claimed_at
    FROM waiting WHERE waiting.org_id IS NOT NULL
)
SELECT org.id FROM standing
JOIN orgs_org org ON org.id = standing.org_id
LEFT JOIN billing_entitlement entitlement ON entitlement.org_id = org.id
WHERE standing.first_deadline IS NOT NULL
    AND standing.under_way < COALESCE(entitlement.runs_at_once, %(runs_at_once)s)
    AND standing.held_by_owner < %(threads)s
ORDER BY standing.under_way, standing.claimed_at NULLS FIRST, standing.first_deadline
LIMIT 1
"""  # noqa: S608 - it is made of constants alone
_LOCK = "FOR NO KEY UPDATE OF org SKIP LOCKED"

# It begins after the organization's row is held, so it sees what the claim before this one took, and counts again.
_RUN = f"""
WITH RECURSIVE waiting(project) AS (
    SELECT MIN(COALESCE(run.project_id, 0)) FROM dispatch_run run WHERE {_WAITING} AND run.org_id = %(org_id)s
    UNION ALL
    SELECT (SELECT MIN(COALESCE(run.project_id, 0)) FROM dispatch_run run
        WHERE {_WAITING} AND run.org_id = %(org_id)s AND COALESCE(run.project_id, 0) > waiting.project)
    FROM waiting WHERE waiting.project IS NOT NULL
), standing AS (
    SELECT waiting.project,
        (SELECT run.id FROM dispatch_run run
            WHERE {_WAITING} AND run.org_id = %(org_id)s AND COALESCE(run.project_id, 0) = waiting.project
                AND run.deadline_at > %(now)s
            ORDER BY run.deadline_at, run.id LIMIT 1) AS run_id,
        ({_UNDER_WAY} AND run.org_id = %(org_id)s AND COALESCE(run.project_id, 0) = waiting.project) AS under_way,
        (SELECT turn.claimed_at FROM dispatch_turn turn
            WHERE turn.org_id = %(org_id)s AND turn.project_number = waiting.project) AS claimed_at
    FROM waiting WHERE waiting.project IS NOT NULL
)
SELECT standing.run_id, standing.project FROM standing
WHERE standing.run_id IS NOT NULL
    AND ({_UNDER_WAY} AND run.org_id = %(org_id)s)
        < COALESCE((SELECT runs_at_once FROM billing_entitlement WHERE org_id = %(org_id)s), %(runs_at_once)s)
ORDER BY standing.under_way, standing.claimed_at NULLS FIRST, standing.run_id
LIMIT 1
"""  # noqa: S608 - it is made of constants alone


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The run whose turn it is. A run without a project has the project number 0."""

    run_id: str
    org_id: str
    project_number: int


def choose(*, owner: str, now: datetime) -> Choice | None:
    """
    Choose the run that this owner of leases claims next, inside the transaction that claims it.

    None where no run waits that may start, or where the only ones belong to an organization that another worker is
    claiming for at this moment.
    """
    values = {
        "now": connection.ops.adapt_datetimefield_value(now),
        "owner": owner,
        "threads": settings.RENSEI_WORKER_THREADS_PER_ORG,
        "runs_at_once": settings.RENSEI_ORG_RUNS_AT_ONCE,
    }
    skips_locked = connection.features.has_select_for_update_skip_locked
    found = _first(f"{_ORGANIZATION} {_LOCK}" if skips_locked else _ORGANIZATION, values)
    if found is None:
        return None
    (org_id,) = found
    found = _first(_RUN, values | {"org_id": org_id})
    return None if found is None else Choice(run_id=found[0], org_id=org_id, project_number=found[1])


def _first(sql: str, values: dict[str, Any]) -> tuple[Any, ...] | None:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        row: tuple[Any, ...] | None = cursor.fetchone()
        return row
