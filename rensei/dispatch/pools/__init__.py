"""Capacity pools by name, and the capacity providers that have a driver on this server."""

from dataclasses import dataclass

from rensei.core.errors import RenseiError, Said
from rensei.dispatch.models import CapacityPool
from rensei.dispatch.pools import local
from rensei.orgs.models import Org

DRIVERS = {driver.PROVIDER_ID: driver for driver in (local,)}


class NoEligiblePool(RenseiError):
    """The named pool is unknown or inactive, or its provider has no driver on this server."""

    code = "NO_ELIGIBLE_POOL"
    status = 409
    title = "No eligible pool"
    message = Said("{reason}", "Dispatch to the pool 'local', or ask an owner to add and activate a pool.")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A capacity pool in the form that a dispatch uses."""

    name: str
    provider_id: str

    @property
    def is_local(self) -> bool:
        return self.provider_id == local.PROVIDER_ID

    def require_driver(self) -> None:
        """:raises NoEligiblePool: if this server has no driver for the pool's provider"""
        if self.provider_id not in DRIVERS:
            raise NoEligiblePool(reason=f"There is no {self.provider_id} driver on this server.")


def find_pool(org: Org, name: str) -> Pool:
    """
    Look up a pool by name. The id of each capacity provider is also a name, so `local` and `e2b` need no row.

    :raises NoEligiblePool: if the pool is unknown or inactive
    """
    if name == local.PROVIDER_ID:
        return Pool(name=name, provider_id=name)
    row = CapacityPool.objects.for_org(org).filter(name=name).first()
    if row is not None and not row.active:
        raise NoEligiblePool(reason=f"The pool '{name}' is not active.")
    if row is not None:
        return Pool(name=row.name, provider_id=row.provider_id)
    if name in CapacityPool.Provider.values:
        return Pool(name=name, provider_id=name)
    raise NoEligiblePool(reason=f"There is no pool '{name}'.")
