"""Where an organization's runs can execute now: the built-in pools and its own, and the runs on each."""

from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q

from rensei.core.errors import RenseiError
from rensei.dispatch import pools
from rensei.dispatch.models import CapacityPool, Run
from rensei.dispatch.pools import accounts
from rensei.dispatch.pools.accounts import CLOUDS
from rensei.dispatch.queries import visible_pools, visible_runs
from rensei.orgs.access import Access

ACTIVE, INACTIVE, UNAVAILABLE = "active", "inactive", "unavailable"
STATES = (ACTIVE, INACTIVE, UNAVAILABLE)
BUILT_IN = (pools.LOCAL, pools.SANDBOX)


@dataclass(frozen=True, kw_only=True)
class PoolState:
    """
    A pool as a dispatch would find it now. `reason` says why it cannot be used.

    `running` and `waiting` count the runs that the caller may see.
    """

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
    refusals = {provider_id: pools.refusal_of(access.org, provider_id) for provider_id in CapacityPool.Provider.values}
    connected = [name for name in sorted(CLOUDS) if accounts.is_connected(access.org, name)]
    named = [(name, name, True) for name in (*BUILT_IN, *connected)]
    named += visible_pools(access).order_by("name").values_list("name", "provider_id", "active")
    return [
        _state(name, provider_id, is_active, refusal=refusals[provider_id], counts=counts)
        for name, provider_id, is_active in named
    ]


def _state(
    name: str, provider_id: str, is_active: bool, *, refusal: RenseiError | None, counts: dict[str, dict[str, Any]]
) -> PoolState:
    state, reason = (ACTIVE, None) if refusal is None else (UNAVAILABLE, refusal.cause)
    if not is_active:
        state, reason = INACTIVE, f"The pool '{name}' is not active."
    found = counts.get(name, {})
    return PoolState(
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
