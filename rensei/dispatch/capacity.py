"""Where an organization's runs can execute now: the built-in pools and its own, the runs on each, and its cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import models
from django.db.models import Count, Q

from billing.ledger.capacity import PoolCost, costs_by_pool
from billing.ledger.reports import visible_lines
from integrations.models import Integration
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.core.periods import month_of, start_of
from rensei.dispatch import pools
from rensei.dispatch.models import CapacityPool, Run
from rensei.dispatch.pools import accounts, slots
from rensei.dispatch.pools.slots import Slots
from rensei.dispatch.queries import visible_pools, visible_runs
from rensei.orgs.access import Access

ACTIVE, INACTIVE, UNAVAILABLE = "active", "inactive", "unavailable"
FULL, CREDENTIAL_FAILING = "full", "credential-failing"
STATES = (ACTIVE, INACTIVE, UNAVAILABLE, CREDENTIAL_FAILING, FULL)
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
    A pool as a dispatch would find it now. `reason` says why it cannot be used, or why a run may wait or fail there,
    and `fix` the step that mends it.

    `running` and `waiting` count the runs that the caller may see. `slots` is None where runs need no sandbox. `id` is
    that of its row: built-in ones have none.
    """

    id: str | None
    name: str
    provider_id: str
    state: str
    reason: str | None
    fix: str | None
    running: int
    waiting: int
    slots: int | None

    @property
    def takes_agents(self) -> bool:
        """Whether agents run on pools of its provider."""
        return pools.Pool(name=self.name, provider_id=self.provider_id).is_sandbox

    @property
    def is_active(self) -> bool:
        """Whether a dispatch to it is admitted. Its run may have to wait, or find that its key is refused."""
        return self.state in {ACTIVE, FULL, CREDENTIAL_FAILING}


def of_org(access: Access) -> list[PoolState]:
    """List the pools of the caller's organization: the built-in ones, those of connected accounts, and its own."""
    connected = accounts.in_use(access.org)
    built_in = [
        CapacityPool(id="", org=access.org, name=name, provider_id=name) for name in (*BUILT_IN, *sorted(connected))
    ]
    return states_of(access, [*built_in, *visible_pools(access).order_by("name")], connected=connected)


def states_of(
    access: Access, named: Sequence[CapacityPool], *, connected: Mapping[str, Integration] | None = None
) -> list[PoolState]:
    """
    Return pools of the caller's organization as a dispatch would find them now, in the given order.

    :param connected: the accounts that it uses by their clouds, if they are known
    """
    connected = accounts.in_use(access.org) if connected is None else connected
    refusals = {each: pools.refusal_of(each, connected=connected) for each in CapacityPool.Provider.values}
    failing = {name: each for name, each in connected.items() if each.status == Integration.Status.FAILING}
    taken = slots.taken(now=database_now(), org_id=access.org.pk)
    counts = _live_runs(access)
    return [
        _state(
            pool,
            refusal=refusals[pool.provider_id],
            failing=failing.get(pool.provider_id),
            taken=taken.get((pool.org_id, pool.name)),
            counts=counts.get(pool.name, {}),
        )
        for pool in named
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
    pool: CapacityPool,
    *,
    refusal: RenseiError | None,
    failing: Integration | None,
    taken: Slots | None,
    counts: dict[str, Any],
) -> PoolState:
    state, reason, fix = ACTIVE, None, None
    if not pool.active:
        state, reason, fix = INACTIVE, f"The pool '{pool.name}' is not active.", "An owner or admin activates it."
    elif refusal is not None:
        state, reason, fix = UNAVAILABLE, refusal.cause, refusal.fix
    elif failing is not None:
        said = failing.last_error["detail"] if failing.last_error else "Its last test failed."
        state, reason = CREDENTIAL_FAILING, f"The key '{failing.name}' fails: {said}"
        fix = "Test the key under Integrations, and rotate it."
    elif taken is not None and taken.are_full:
        state, reason = FULL, slots.sentence(pool.name, taken)
        fix = "Wait for one of its sandboxes to end, or give the pool more slots."
    return PoolState(
        id=pool.id or None,
        name=pool.name,
        provider_id=pool.provider_id,
        state=state,
        reason=reason,
        fix=fix,
        running=counts.get("running", 0),
        waiting=counts.get("waiting", 0),
        slots=None if pool.provider_id == pools.LOCAL else slots.of_config(pool.config),
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
