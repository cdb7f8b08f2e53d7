"""Capacity pools by name, and the capacity providers that have a driver on this server."""

from dataclasses import dataclass

from django.db.models import QuerySet

from rensei.core.clock import database_now
from rensei.core.errors import RenseiError, Said
from rensei.core.models import WorkerHeartbeat
from rensei.dispatch.models import CapacityPool
from rensei.orgs.models import Org

LOCAL, SANDBOX = CapacityPool.Provider.LOCAL.value, CapacityPool.Provider.SANDBOX.value


class NoEligiblePool(RenseiError):
    """The named pool is unknown or inactive, or its provider has no driver on this server."""

    code = "NO_ELIGIBLE_POOL"
    status = 409
    title = "No eligible pool"
    message = Said("{reason}", "Dispatch to the pool 'local', or ask an owner to add and activate a pool.")


class AgentProgramUnavailable(RenseiError):
    """A worker that may start the sandbox of the agent does not have its program."""

    code = "AGENT_PROGRAM_UNAVAILABLE"
    status = 409
    title = "Agent program unavailable"
    message = Said(
        "Claude Code cannot run there: {reason}",
        "Ask your operator to install it on each worker that starts sandboxes, or give a program of your own.",
    )


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A capacity pool in the form that a dispatch uses. `refusal` is the reason why this server cannot use it now."""

    name: str
    provider_id: str
    refusal: str = ""

    @property
    def is_local(self) -> bool:
        return self.provider_id == LOCAL

    @property
    def is_sandbox(self) -> bool:
        return self.provider_id == SANDBOX

    def require_driver(self) -> None:
        """:raises NoEligiblePool: if this server has no driver for the pool's provider, or cannot use it now"""
        if self.refusal:
            raise NoEligiblePool(reason=self.refusal)

    def require_agents(self) -> None:
        """:raises NoEligiblePool: if no agent can run there"""
        if not self.is_sandbox:
            raise NoEligiblePool(
                reason=f"Agents run in sandboxes, and '{self.name}' is no pool of the provider '{SANDBOX}'."
            )

    def require_claude_code(self) -> None:
        """
        Check that every worker that may start the sandbox has Claude Code.

        :raises AgentProgramUnavailable: if one of them has not
        """
        if not self.is_sandbox:
            raise AgentProgramUnavailable(reason=f"it works in pools of the provider '{SANDBOX}' only.")
        without = _heard().filter(offers_sandboxes=True, offers_claude_code=False)
        reason = without.values_list("claude_code_refusal", flat=True).first()
        if reason is not None:
            raise AgentProgramUnavailable(reason=reason or "its workers have not said why.")


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
    provider_id = row.provider_id if row is not None else name
    return Pool(name=name, provider_id=provider_id, refusal=refusal_of(provider_id))


def refusal_of(provider_id: str) -> str:
    """Return the reason why this server cannot use a capacity provider now, or ""."""
    if provider_id == LOCAL:
        return ""
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
