"""Where an organization's runs can execute now: the built-in pools and its own, the runs on each, and its cost."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import models
from django.db.models import Count, Q

from billing.ledger.capacity import PoolCost, costs_by_pool
from billing.ledger.reports import visible_lines
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.core.periods import month_of, start_of
from rensei.dispatch import pools
from rensei.dispatch.models import CapacityPool, Run
from rensei.dispatch.pools import accounts
from rensei.dispatch.queries import visible_pools, visible_runs
from rensei.orgs.access import Access

ACTIVE, INACTIVE, UNAVAILABLE = "active", "inactive", "unavailable"
STATES = (ACTIVE, INACTIVE, UNAVAILABLE)
BUILT_IN = (pools.LOCAL, pools.SANDBOX)


class Window(models.TextChoices):
    """The time until now whose cost is summed."""

    DAY = "24h", "24 hours"
    WEEK = "7d", "7 days"
    MONTH = "30d", "30 days"


LENGTHS = {Window.DAY: timedelta(hours=24), Window.WEEK: timedelta(days=7), Window.MONTH: timedelta(days=30)}


@dataclass(frozen=True, kw_only=True)
class PoolState:
    """
    A pool as a dispatch would find it now. `reason` says why it cannot be used.

    `running` and `waiting` count the runs that the caller may see. `id` is that of its row: built-in ones have none.
    """

    id: str | None
    name: str
    provider_id: str
    state: str
    reason: str | None
    running: int
    waiting: int

    @property
    def takes_agents(self) -> bool:
        """Whether agents run on pools of its provider."""
        return pools.Pool(name=self.name, provider_id=self.provider_id).is_sandbox

    @property
    def is_active(self) -> bool:
        return self.state == ACTIVE


def of_org(access: Access) -> list[PoolState]:
    """List the pools of the caller's organization: the built-in ones, those of connected accounts, and its own."""
    counts = _live_runs(access)
    connected = accounts.connected(access.org)
    refusals = {each: pools.refusal_of(each, connected=connected) for each in CapacityPool.Provider.values}
    built_in = (*BUILT_IN, *sorted(connected))
    named: list[tuple[str | None, str, str, bool]] = [(None, name, name, True) for name in built_in]
    named += visible_pools(access).order_by("name").values_list("id", "name", "provider_id", "active")
    return [
        _state(pool_id, name, provider_id, is_active, refusal=refusals[provider_id], counts=counts)
        for pool_id, name, provider_id, is_active in named
    ]


def costs(access: Access, *, window: Window) -> list[PoolCost]:
    """Sum what the sandboxes of each pool have cost in a window, the pools that were removed included."""
    since = database_now() - LENGTHS[window]
    return list(costs_by_pool(visible_lines(access), since=since).values())


def costs_of_month(access: Access) -> dict[tuple[str, str], PoolCost]:
    """Sum what the sandboxes of each pool have cost in this UTC month, by its name and its provider."""
    return costs_by_pool(visible_lines(access), since=start_of(month_of(database_now())))


def live_on(pool: CapacityPool) -> int:
    """Count the runs of the organization that wait for a pool or execute on it, for a caller that may change it."""
    return Run.objects.for_org(pool.org).live().filter(pool=pool.name).count()


def _state(
    pool_id: str | None,
    name: str,
    provider_id: str,
    is_active: bool,
    *,
    refusal: RenseiError | None,
    counts: dict[str, dict[str, Any]],
) -> PoolState:
    state, reason = (ACTIVE, None) if refusal is None else (UNAVAILABLE, refusal.cause)
    if not is_active:
        state, reason = INACTIVE, f"The pool '{name}' is not active."
    found = counts.get(name, {})
    return PoolState(
        id=pool_id,
        name=name,
        provider_id=provider_id,
        state=state,
        reason=reason,
        running=found.get("running", 0),
        waiting=found.get("waiting", 0),
    )


def _live_runs(access: Access) -> dict[str, dict[str, Any]]:
    live = visible_runs(access).live()
    by_pool = (
        live.order_by()
        .values("pool")
        .annotate(
            running=Count("id", filter=Q(state=Run.State.RUNNING)),
            waiting=Count("id", filter=Q(state=Run.State.QUEUED)),
        )
    )
    return {each["pool"]: dict(each) for each in by_pool}
