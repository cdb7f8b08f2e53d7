"""Capacity pools by name, and the capacity providers that have a driver on this server."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db.models import QuerySet

from integrations.capacity import CAPACITY
from integrations.capacity import modal as modal_account
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError, Said
from rensei.core.models import WorkerHeartbeat
from rensei.dispatch.models import CapacityPool
from rensei.dispatch.pools import accounts
from rensei.dispatch.pools.accounts import CloudCannotReachServer
from rensei.orgs.models import Org, Project

LOCAL, SANDBOX = CapacityPool.Provider.LOCAL.value, CapacityPool.Provider.SANDBOX.value


class NoEligiblePool(RenseiError):
    """The named pool is unknown or inactive, or its provider has no driver on this server."""

    code = "NO_ELIGIBLE_POOL"
    status = 409
    title = "No eligible pool"
    message = Said("{reason}", "Dispatch to the pool 'local', or ask an owner to add and activate a pool.")


class AgentProgramUnavailable(RenseiError):
    """A worker that may start the sandbox of the agent does not have its program, or its image does not."""

    code = "AGENT_PROGRAM_UNAVAILABLE"
    status = 409
    title = "Agent program unavailable"
    message = Said(
        "Claude Code cannot run there: {reason}",
        "Have it installed on each worker that starts sandboxes, or in the image or template of a pool in a cloud, or "
        "give a program of your own.",
    )


class GitHostNotAllowed(RenseiError):
    """No sandbox of the pool may reach the host of the repository that is to be cloned."""

    code = "GIT_HOST_NOT_ALLOWED"
    status = 409
    title = "Host of the repository not allowed"
    message = Said("No repository can be cloned from {host} in the pool '{pool}': {reason}.", "{step}")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A capacity pool in the form that a dispatch uses. `refusal` says why this server cannot use it now."""

    name: str
    provider_id: str
    config: Mapping[str, Any] = field(default_factory=dict)
    refusal: RenseiError | None = None

    @property
    def is_local(self) -> bool:
        return self.provider_id == LOCAL

    @property
    def is_cloud(self) -> bool:
        return self.provider_id in accounts.CLOUDS

    @property
    def is_sandbox(self) -> bool:
        return self.provider_id == SANDBOX or self.is_cloud

    def require_driver(self) -> None:
        """:raises NoEligiblePool, CloudCannotReachServer: if this server cannot use the pool now"""
        if self.refusal is not None:
            raise self.refusal

    def require_agents(self) -> None:
        """:raises NoEligiblePool: if no agent can run there"""
        if not self.is_sandbox:
            raise NoEligiblePool(reason=f"Agents run in sandboxes, and '{self.name}' is a local pool.")

    def require_claude_code(self) -> None:
        """
        Check that every worker that may start the sandbox has Claude Code. In a cloud, an image is expected to have it.

        :raises AgentProgramUnavailable: if one of them has not
        """
        if self.is_cloud:
            return
        without = _heard().filter(offers_sandboxes=True, offers_claude_code=False)
        reason = without.values_list("claude_code_refusal", flat=True).first()
        if reason is not None:
            raise AgentProgramUnavailable(reason=reason or "its workers have not said why.")

    def require_git(self, host: str) -> None:
        """:raises GitHostNotAllowed: if its sandboxes cannot clone from a host"""
        if not self.is_cloud:
            raise GitHostNotAllowed(
                host=host,
                pool=self.name,
                reason="its sandboxes have no network",
                step="Clone it yourself and send the files, or dispatch to a pool in a cloud.",
            )
        if host == urlsplit(settings.PUBLIC_URL).hostname:
            step = "Name the repository's own host."
            raise GitHostNotAllowed(host=host, pool=self.name, reason="this is the address of Rensei", step=step)
        if host not in self.config.get("egress", ()):
            raise GitHostNotAllowed(
                host=host,
                pool=self.name,
                reason="its sandboxes may not reach it",
                step=f'Ask an owner or admin to add it to the pool\'s settings, as in {{"egress": ["{host}"]}}, or to '
                "add a pool with them, under Settings → Capacity.",
            )


def name_for(asked: str | None, project: Project | None) -> str:
    """Return the name of a dispatch's pool: the one that it asks for, else that of its project, else the local one."""
    return asked or (project.pool if project else "") or LOCAL


def find_pool(org: Org, name: str) -> Pool:
    """
    Look up a pool by name. The id of each capacity provider is also a name, so `local` and `e2b` need no row.

    :raises NoEligiblePool: if the pool is unknown or inactive
    """
    if name == LOCAL:
        return Pool(name=name, provider_id=name)
    row = CapacityPool.objects.for_org(org).filter(name=name).first()
    if row is not None and not row.active:
        raise NoEligiblePool(reason=f"The pool '{name}' is not active.")
    if row is None and name not in CapacityPool.Provider.values:
        raise NoEligiblePool(reason=f"There is no pool '{name}'.")
    provider_id, config = (name, {}) if row is None else (row.provider_id, row.config)
    connected = accounts.connected(org) if provider_id in accounts.CLOUDS else ()
    return Pool(name=name, provider_id=provider_id, config=config, refusal=refusal_of(provider_id, connected=connected))


def refusal_of(provider_id: str, *, connected: Collection[str]) -> RenseiError | None:
    """
    Return the refusal of a dispatch to a capacity provider that this server cannot use now for an organization.

    :param connected: the clouds in which the organization has an account
    """
    if provider_id in accounts.CLOUDS:
        return _refusal_of_cloud(provider_id, is_connected=provider_id in connected)
    reason = "" if provider_id == LOCAL else _no_sandboxes(provider_id)
    return NoEligiblePool(reason=reason) if reason else None


def _refusal_of_cloud(provider_id: str, *, is_connected: bool) -> RenseiError | None:
    if not is_connected:
        return NoEligiblePool(
            reason=f"No account at {CAPACITY[provider_id].display_name} is connected. An owner or admin connects one "
            "under Integrations, with Add Provider."
        )
    if provider_id == modal_account.SPEC.id and not modal_account.is_installed():
        return NoEligiblePool(reason=modal_account.NOT_INSTALLED)
    if not settings.RENSEI_SANDBOXES_AT_ONCE:
        return NoEligiblePool(reason="This server starts no sandboxes (RENSEI_SANDBOXES_AT_ONCE is 0).")
    try:
        accounts.require_reachable(provider_id)
    except CloudCannotReachServer as refusal:
        return refusal
    return None


def _no_sandboxes(provider_id: str) -> str:
    """Return why no worker starts sandboxes on its own machine, or ""."""
    if provider_id != SANDBOX:
        return f"There is no {provider_id} driver on this server."
    offers = (
        _heard().order_by("-offers_sandboxes", "-seen_at").values_list("offers_sandboxes", "sandbox_refusal").first()
    )
    if offers is None:
        return "No worker process is running that could start a sandbox."
    is_offered, reason = offers
    return "" if is_offered else f"This server starts no sandboxes: {reason or 'its workers have not said why.'}"


def _heard() -> QuerySet[WorkerHeartbeat]:
    return WorkerHeartbeat.objects.filter(seen_at__gt=database_now() - WorkerHeartbeat.SILENT_AFTER)
