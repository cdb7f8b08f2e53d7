"""
How many rows of each kind an organization, or a member of it, may have.

Pages, lists and policies read all rows of some kinds, so their number bounds that work. A row is counted in the
transaction that creates it, while the organization is locked. Changing and deleting are never refused.
"""

from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet

from rensei.core.errors import RenseiError, Said
from rensei.core.limits import limit
from rensei.orgs import locks
from rensei.orgs.models import Org

TOLD = "the caller: 403 `LIMIT_REACHED`"


class LimitReached(RenseiError):
    """There are as many rows of that kind as there may be."""

    code = "LIMIT_REACHED"
    status = 403
    title = "Limit reached"
    message = Said("{holder} has {used} {rows}, of the {limit} that it may have.", "{fix}")


@dataclass(frozen=True, kw_only=True)
class RowLimit:
    """The most rows of one kind, who has them, and how room is made."""

    most: int
    rows: str
    fix: str
    holder: str = "The organization"


PROJECTS = RowLimit(
    most=limit(500, "projects", what="Projects of an organization", told=TOLD),
    rows="projects",
    fix="Delete a project that is not needed.",
)
INTEGRATIONS = RowLimit(
    most=limit(200, "integrations", what="Integrations of an organization", told=TOLD),
    rows="integrations",
    fix="Remove an integration that is not needed.",
)
PROFILES = RowLimit(
    most=limit(2_000, "profiles", what="Profiles of an organization", told=TOLD),
    rows="profiles",
    fix="Delete a profile that is not needed.",
)
OWN_MODELS = RowLimit(
    most=limit(500, "models", what="Models that an organization adds to its catalog", told=TOLD),
    rows="models of its own",
    fix="Delete one that is not needed.",
)
POOLS = RowLimit(
    most=limit(200, "pools", what="Capacity pools of an organization", told=TOLD),
    rows="capacity pools",
    fix="Remove a pool that is not needed.",
)
WORKFLOWS = RowLimit(
    most=limit(2_000, "workflows", what="Workflows of an organization", told=TOLD),
    rows="workflows",
    fix="Delete a workflow that is not needed.",
)
MACHINES = RowLimit(
    most=limit(100, "machines", what="Machines of a member that are not revoked", told=TOLD),
    rows="machines",
    fix="Revoke a machine that is not in use.",
    holder="The member",
)
TOKENS = RowLimit(
    most=limit(200, "tokens", what="API tokens of a member that are valid, those of machines included", told=TOLD),
    rows="valid API tokens",
    fix="Revoke a token that is not in use.",
    holder="The member",
)


def require_room(org: Org, rows: QuerySet[Any], of: RowLimit) -> None:
    """
    Lock the organization until commit, and check that one more of some rows may be created.

    Of two transactions that create one at the same time, the second counts the row of the first.

    :raises LimitReached: if there are as many as there may be
    :raises NotFound: if the organization is being deleted
    """
    locks.lock(org.pk)
    used = rows.count()
    if used >= of.most:
        raise LimitReached(
            holder=of.holder,
            used=used,
            rows=of.rows,
            limit=of.most,
            fix=of.fix,
            extra={"used": used, "limit": of.most},
        )
