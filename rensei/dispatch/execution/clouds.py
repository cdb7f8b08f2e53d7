"""Sandboxes in clouds: the account that starts that of a run, and the accounts in which some may have been left."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog
from django.db.models import F, Q, QuerySet

from integrations.keys import health
from integrations.providers.base import Credential, ProviderFailure
from integrations.vault.openings import Reason, Why
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError
from rensei.dispatch.execution import execute
from rensei.dispatch.execution.lease_renewal import LiveRun
from rensei.dispatch.models import CapacityPool, Run, Sandbox
from rensei.dispatch.pools import NoEligiblePool, accounts
from rensei.dispatch.pools.accounts import CLOUDS, DRIVERS
from rensei.dispatch.pools.cloud import REQUEST_SECONDS_MAX, Account, Cloud, open_session
from rensei.dispatch.pools.driver import Fault, SandboxFault
from rensei.dispatch.settlement import capacity_use

UNDER_WAY = Q(run__state=Run.State.RUNNING, run__epoch=F("epoch"))
# A creation that its dead worker began is visible at the provider by then.
LEFT_AFTER = timedelta(seconds=4 * REQUEST_SECONDS_MAX)
LONGEST_LIFE = timedelta(seconds=max(driver.seconds_max for driver in DRIVERS.values())) + LEFT_AFTER
LEFT_AT_ONCE = 1000
# So many accounts are opened in one sweep. The next one goes on with those behind.
ACCOUNTS_AT_ONCE = 200
_UNAUTHORIZED = 401

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Place:
    """An organization's account at a capacity provider, opened for a sandbox or for a sweep."""

    org_id: str
    provider_id: str
    key: Credential
    account: Account

    def note(self, fault: SandboxFault) -> None:
        """Mark the key as failing if the provider does not accept it, and tell the organization once."""
        if fault.fault is Fault.REFUSED:
            failure = ProviderFailure(
                code="POOL_CREDENTIAL_REFUSED",
                message=fault.reason,
                fix="Test the key under Integrations, and rotate it.",
                retryable=False,
                status=_UNAUTHORIZED,
            )
            health.note_refused(self.key, failure, now=database_now())

    def note_accepted(self) -> None:
        """Clear the mark of a key that failed before: a sandbox was created with it."""
        health.note_accepted(self.key, now=database_now())


class Clouds:
    """The drivers of one worker. Their connections are bound to its event loop."""

    def __init__(self) -> None:
        self._session = open_session()
        # The account with which the last sweep ended.
        self._swept_to: tuple[str, ...] = ()

    def driver(self, place: Place, run: Run | None = None, *, seconds: float = 0.0) -> Cloud:
        tags = {} if run is None else {"rensei-run": run.id, "rensei-epoch": str(run.epoch)}
        return DRIVERS[place.provider_id](self._session, place.account, seconds=seconds, tags=tags)

    def place_of(self, run: Run, live: LiveRun) -> Place | None:
        """Open the account that starts the sandbox of a run. None if the run has ended here."""
        return execute.until_refused(run, live, lambda mode: _place(run))

    def left(self) -> Sequence[tuple[Place, Sequence[Sandbox]]]:
        """
        Open the accounts in which sandboxes of runs may exist that are no longer under way, with their rows.

        Accounts take turns, so that those that cannot be opened do not keep a sweep from the others.
        """
        now = database_now()
        left = (
            Sandbox.objects.filter(ended_at=None, provider_id__in=CLOUDS)
            .exclude(UNDER_WAY)
            .select_related("org", "run__project")
            .order_by("id")
        )
        # Those whose account cannot be opened any more have ended by themselves. Until then their rows are left.
        capacity_use.end_left(left.filter(created_at__lt=now - LONGEST_LIFE)[:LEFT_AT_ONCE], {})
        rows = left.filter(created_at__lt=now - LEFT_AFTER)
        found: list[tuple[Place, Sequence[Sandbox]]] = []
        for org_id, credential_id, workspace_id in self._take_turn(rows):
            of = list(rows.filter(org=org_id, credential_id=credential_id, workspace_id=workspace_id)[:LEFT_AT_ONCE])
            place = _place_left(of[0]) if of else None
            if place is not None:
                found.append((place, of))
        return found

    def _take_turn(self, rows: QuerySet[Sandbox]) -> list[tuple[str, str, str]]:
        """Return the accounts that this sweep opens: those behind the last one, then those from the beginning."""
        named = sorted(set(rows.order_by().values_list("org_id", "credential_id", "workspace_id").distinct()))
        behind = [account for account in named if account > self._swept_to]
        first = [account for account in named if account <= self._swept_to]
        turn = [*behind, *first][:ACCOUNTS_AT_ONCE]
        self._swept_to = turn[-1] if turn else ()
        return turn

    async def close(self) -> None:
        await self._session.close()


def _place(run: Run) -> Place:
    """
    :raises NoEligiblePool: if the pool was removed or the account disconnected meanwhile
    :raises CloudCannotReachServer: if this worker has another address of the server, which no cloud can reach
    :raises CredentialUnreadable: if the vault cannot open the key now
    """
    pool = CapacityPool.objects.for_org(run.org).filter(name=run.pool).first()
    provider_id, config = (run.pool, {}) if pool is None else (pool.provider_id, pool.config)
    if provider_id not in CLOUDS:
        raise NoEligiblePool(reason=f"The pool '{run.pool}' was removed.")
    accounts.require_reachable(provider_id)
    key = accounts.open_key(run.org, provider_id, why=Why(reason=Reason.DISPATCH, run_id=run.id))
    if key is None:
        raise NoEligiblePool(reason=f"The account of the pool '{run.pool}' was disconnected.")
    account = accounts.account(run.org, key, provider_id=provider_id, config=config)
    return Place(org_id=run.org_id, provider_id=provider_id, key=key, account=account)


def _place_left(row: Sandbox) -> Place | None:
    """
    Open the account in which a sandbox may have been left; None if it is not possible now.

    It need not be the one in use today: in the list of another one a sandbox that lives on would be missing.
    """
    try:
        key = accounts.open_key_of(row, why=Why(reason=Reason.DISPATCH, run_id=row.run_id))
    except RenseiError as fault:
        logger.warning("account_not_opened", org_id=row.org_id, code=fault.code)
        return None
    if key is None:
        return None
    account = accounts.account(row.org, key, provider_id=row.provider_id, config={})
    return Place(org_id=row.org_id, provider_id=row.provider_id, key=key, account=account)
