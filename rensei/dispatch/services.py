"""Operations that change a run after its dispatch, and operations on capacity pools."""

import re

from rensei.audit.record import record
from rensei.core.clock import database_now
from rensei.core.errors import AlreadyExists, FieldError, InUse, RenseiError
from rensei.core.transactions import durable, unique
from rensei.dispatch.models import CapacityPool, Run
from rensei.dispatch.pools import LOCAL, SANDBOX, find_pool
from rensei.dispatch.pools.accounts import DRIVERS
from rensei.dispatch.pools.cloud import check_config, common_settings
from rensei.dispatch.settlement import settle
from rensei.dispatch.settlement.settle import RunEnd, SettlementPlan
from rensei.orgs import locks, row_limits
from rensei.orgs.access import Access
from rensei.orgs.models import Project
from rensei.orgs.services import require_own

# A refusal names so many of those that use a pool.
USERS_NAMED = 10
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


def create_pool(
    access: Access, *, name: str, provider_id: str, config: dict[str, object], active: bool = True
) -> CapacityPool:
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
    _check_config(provider_id, config)
    if name in CapacityPool.Provider.values:
        raise AlreadyExists(what=f"A built-in pool '{name}'")
    with unique(AlreadyExists(what=f"A pool '{name}'"), durable=True):
        row_limits.require_room(access.org, CapacityPool.objects.for_org(access.org), row_limits.POOLS)
        pool = CapacityPool.objects.create(
            org=access.org, name=name, provider_id=provider_id, config=config, active=active
        )
        record(access, "pool.added", object_id=pool.id, name=name)
    return pool


def update_pool(
    access: Access, pool: CapacityPool, *, active: bool | None = None, config: dict[str, object] | None = None
) -> CapacityPool:
    """
    Switch a pool on or off, or replace its settings. What is None stays.

    Runs that were dispatched to it continue; those that have not started get the new settings.

    :raises FieldError: if a setting is invalid, or nothing is given
    """
    access.require_org_manager()
    if config is not None:
        _check_config(pool.provider_id, config)
    changed = {name: value for name, value in {"active": active, "config": config}.items() if value is not None}
    if not changed:
        raise FieldError(pointer="", reason="Give `active`, `config` or both.")
    with durable():
        for name, value in changed.items():
            setattr(pool, name, value)
        pool.save(update_fields=list(changed))
        record(access, "pool.changed", object_id=pool.id, **changed)
    return pool


def remove_pool(access: Access, pool: CapacityPool) -> None:
    """
    Remove a pool. Runs keep its name; those that wait for a sandbox in a cloud fail when it is their turn.

    :raises InUse: if it is the default pool of a project
    """
    access.require_org_manager()
    with durable():
        locks.lock(access.org.pk)
        pool_id, name = pool.id, pool.name
        projects = list(Project.objects.for_org(access.org).filter(pool=name).order_by("slug")[:USERS_NAMED])
        if projects:
            named = ", ".join(f"'{project.slug}'" for project in projects)
            raise InUse(what=f"The pool '{name}'", users=f"the projects {named} as their default pool")
        pool.delete()
        record(access, "pool.removed", object_id=pool_id, name=name)


def set_project_pool(access: Access, project: Project, *, pool: str | None) -> Project:
    """
    Name the default pool of a project, for its runs that name none; None for the local one.

    :raises NoEligiblePool: if there is no such pool, or it is not active
    """
    access.require_manager()
    require_own(access, project)
    with durable():
        locks.lock(access.org.pk)
        name = "" if pool in {None, LOCAL} else find_pool(access.org, pool or "").name
        record(access, "project.pool_set", object_id=project.slug, old={"pool": project.pool}, new={"pool": name})
        project.pool = name
        project.save(update_fields=["pool"])
    return project


def _check_config(provider_id: str, config: dict[str, object]) -> None:
    """:raises FieldError: for the first setting that pools of the provider do not have, or that is invalid"""
    if provider_id in DRIVERS:
        DRIVERS[provider_id].check_config(config, pointer="/config")
    elif provider_id == SANDBOX:
        check_config(config, common_settings(), what="A pool of sandboxes", pointer="/config")
    elif config:
        raise FieldError(pointer="/config", reason=f"A pool of the provider '{provider_id}' has no settings.")
