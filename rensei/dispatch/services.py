"""Operations that change a run after its dispatch, and operations on capacity pools."""

import re

from rensei.audit.record import record
from rensei.core.clock import database_now
from rensei.core.errors import AlreadyExists, FieldError, RenseiError
from rensei.core.transactions import durable, unique
from rensei.dispatch.models import CapacityPool, Run
from rensei.dispatch.pools.accounts import DRIVERS
from rensei.dispatch.settlement import settle
from rensei.dispatch.settlement.settle import RunEnd, SettlementPlan
from rensei.orgs import row_limits
from rensei.orgs.access import Access

POOL_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class RunNotCancellable(RenseiError):
    """The run has already ended."""

    code = "RUN_NOT_CANCELLABLE"
    status = 409
    title = "Run already ended"
    message = "The run has already ended as {state}, so there is nothing to cancel."


def cancel_run(access: Access, run: Run) -> Run:
    """
    Cancel a run. A queued run ends immediately; a running call is aborted, and its usage is charged.

    :raises RunNotCancellable: if the run has ended
    """
    access.require_writer()
    if run.state in Run.ENDED:
        raise RunNotCancellable(state=run.state)
    request_cancel(run, by=access)
    run.refresh_from_db()
    return run


def request_cancel(run: Run, *, by: Access | None = None) -> None:
    """Cancel a live run: for a member, in the audit log, or because its organization is deleted."""
    now = database_now()
    was_queued = run.state == Run.State.QUEUED
    if was_queued:
        settle.write([SettlementPlan(run=run, now=now, end=RunEnd(state=Run.State.CANCELLED))])
    with durable():
        # A run that was requeued meanwhile is cancelled at its next claim.
        live = Run.objects.filter(id=run.id, state__in=[Run.State.RUNNING, Run.State.QUEUED], cancel_requested_at=None)
        if (live.update(cancel_requested_at=now) or was_queued) and by is not None:
            record(by, "run.cancelled", object_id=run.id)


def create_pool(access: Access, *, name: str, provider_id: str, config: dict[str, object]) -> CapacityPool:
    """
    Add a capacity pool to the organization.

    :raises FieldError: if the name or the provider is invalid
    :raises AlreadyExists: if the organization has a pool of that name
    :raises LimitReached: if it has as many pools as it may
    """
    access.require_org_manager()
    if not POOL_NAME.fullmatch(name):
        raise FieldError(pointer="/name", reason="A pool's name is lower-case letters, digits and dashes.")
    if provider_id not in CapacityPool.Provider.values:
        raise FieldError(pointer="/providerId", reason=f"One of {', '.join(CapacityPool.Provider.values)}.")
    if provider_id == CapacityPool.Provider.SANDBOX and config:
        raise FieldError(pointer="/config", reason="A pool of the provider 'sandbox' has no settings.")
    if provider_id in DRIVERS:
        DRIVERS[provider_id].check_config(config, pointer="/config")
    if name in CapacityPool.Provider.values:
        raise AlreadyExists(what=f"A built-in pool '{name}'")
    with unique(AlreadyExists(what=f"A pool '{name}'"), durable=True):
        row_limits.require_room(access.org, CapacityPool.objects.for_org(access.org), row_limits.POOLS)
        pool = CapacityPool.objects.create(org=access.org, name=name, provider_id=provider_id, config=config)
        record(access, "pool.added", object_id=pool.id, name=name)
    return pool


def update_pool(access: Access, pool: CapacityPool, *, active: bool) -> CapacityPool:
    """Switch a pool on or off. Runs that were dispatched to it continue."""
    access.require_org_manager()
    with durable():
        pool.active = active
        pool.save(update_fields=["active"])
        record(access, "pool.changed", object_id=pool.id, active=active)
    return pool


def remove_pool(access: Access, pool: CapacityPool) -> None:
    """Remove a pool. Its runs keep its name."""
    access.require_org_manager()
    with durable():
        pool_id, name = pool.id, pool.name
        pool.delete()
        record(access, "pool.removed", object_id=pool_id, name=name)
