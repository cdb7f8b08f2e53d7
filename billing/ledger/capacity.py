"""The ledger lines of capacity: the seconds of sandboxes in the accounts that organizations have in clouds."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Count

from billing.models import CostEvent
from rensei.core.auth_modes import AuthMode, Payer
from rensei.core.transactions import assert_open
from rensei.core.whole_numbers import WholeSum
from rensei.orgs.models import OrgScopedQuerySet

CLASS_BEGINNING = "capacity."
# The names of the capacity providers by id. The packages that know them, which this one may not import, add them.
PROVIDER_NAMES: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class SandboxUse:
    """
    The use of one sandbox. `second_picodollars` is frozen here; None: not known.

    `estimated`: its end was not seen, so it may have had fewer seconds.
    """

    org_id: str
    run_id: str
    sandbox_id: str
    profile_id: str
    project_id: str
    pool: str
    provider: str
    credential_id: str
    seconds: int
    second_picodollars: int | None
    estimated: bool
    occurred_at: datetime


@dataclass(frozen=True, kw_only=True)
class PoolCost:
    """What the sandboxes of one pool have cost in a period. `unpriced` counts those without an amount."""

    pool: str
    provider: str
    sandboxes: int
    seconds: int
    unpriced: int
    amount_picodollars: int

    @property
    def known_picodollars(self) -> int | None:
        """The sum of the priced lines. None where no line has a price: unknown is never 0."""
        return None if self.sandboxes and self.unpriced == self.sandboxes else self.amount_picodollars


def billing_class_of(provider: str) -> str:
    """Return the class of the lines of a capacity provider. It takes the place of their model."""
    return f"{CLASS_BEGINNING}{provider}"


def write_lines(uses: Iterable[SandboxUse]) -> list[CostEvent]:
    """
    Write one line for each sandbox, in the caller's transaction, which adds them to the roll-ups at its end.

    The organization's key made the sandbox, so its provider bills the organization, also where another party pays for
    the model. The caller guards each sandbox by a conditional UPDATE; the unique constraint refuses a second line.
    """
    assert_open()
    return CostEvent.objects.bulk_create([_line(use) for use in uses])


def _line(use: SandboxUse) -> CostEvent:
    billing_class = billing_class_of(use.provider)
    price = use.second_picodollars
    return CostEvent(
        kind=CostEvent.Kind.CAPACITY,
        org_id=use.org_id,
        run_id=use.run_id,
        attempt_id=use.sandbox_id,
        profile_id=use.profile_id,
        project_id=use.project_id,
        auth_mode=AuthMode.BYOK,
        payer=Payer.ORGANIZATION,
        billing_class=billing_class,
        pool_id=use.pool,
        credential_id=use.credential_id,
        provider=use.provider,
        model_id=billing_class,
        served_model_id=billing_class,
        sandbox_seconds=use.seconds,
        sandbox_second_picodollars=price,
        amount_picodollars=None if price is None else use.seconds * price,
        billed=False,
        estimated=use.estimated,
        occurred_at=use.occurred_at,
    )


def costs_by_pool(lines: OrgScopedQuerySet[CostEvent], *, since: datetime) -> dict[tuple[str, str], PoolCost]:
    """
    Sum the lines of capacity since a moment by the name and the provider of their pool.

    A pool that was removed keeps its sum. Another one may have its name, at another provider.
    """
    of_capacity = lines.filter(kind=CostEvent.Kind.CAPACITY, occurred_at__gte=since)
    sums = (
        of_capacity.order_by("pool_id", "provider")
        .values("pool_id", "provider")
        .annotate(
            sandboxes=Count("id"),
            priced=Count("amount_picodollars"),
            seconds=WholeSum("sandbox_seconds"),
            amount=WholeSum("amount_picodollars"),
        )
    )
    return {
        (each["pool_id"], each["provider"]): PoolCost(
            pool=each["pool_id"],
            provider=each["provider"],
            sandboxes=each["sandboxes"],
            seconds=each["seconds"],
            unpriced=each["sandboxes"] - each["priced"],
            amount_picodollars=each["amount"] or 0,
        )
        for each in sums
    }
