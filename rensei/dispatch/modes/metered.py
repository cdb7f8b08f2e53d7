"""Metered: a platform key signs, and the organization is billed through Rensei's cost ledger."""

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import ClassVar

from billing.limits import budget
from billing.limits.budget import MeteredBudgetExceeded
from billing.limits.entitlement import MeteredNotEntitled, metered_gate
from billing.models import Entitlement
from integrations.models import PlatformKey
from integrations.providers.base import Credential
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import RenseiError, Said
from rensei.dispatch.context import DispatchContext
from rensei.dispatch.models import Run
from rensei.dispatch.modes.base import Gate, Holds, ModelUnpriced
from rensei.dispatch.modes.platform_pool import PlatformPool


class MeteredKeyNotConfigured(RenseiError):
    """The platform's metered pool for the provider has no healthy key for the model."""

    code = "METERED_KEY_NOT_CONFIGURED"
    status = 503
    title = "No metered key"
    message = Said(
        "No metered key is configured for provider '{provider}'.",
        ("Contact your Rensei operator: the operator docs at /docs/operators/key-pools say how to set one up."),
    )


class Metered(PlatformPool):
    mode: ClassVar[AuthMode] = AuthMode.METERED
    pool = PlatformKey.Pool.METERED
    no_key = MeteredKeyNotConfigured
    billed: ClassVar[bool] = True
    refusals: ClassVar[tuple[type[RenseiError], ...]] = (
        MeteredNotEntitled,
        MeteredKeyNotConfigured,
        ModelUnpriced,
        MeteredBudgetExceeded,
    )

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        return (
            Gate("entitlement", self._require_entitlement),
            Gate("key", self.require_key),
            Gate("price", self.require_price),
        )

    @cached_property
    def limits(self) -> tuple[Gate, ...]:
        return (Gate("budget", self._require_budget),)

    def hold(self, *, org_id: str, at_most: Mapping[str, int | None], now: datetime) -> Holds:
        """Refuse the runs whose maximum cost does not fit into the rest of the month's budget."""
        known = {run_id: most for run_id, most in at_most.items() if most is not None}
        assert len(known) == len(at_most), "A model without a price was refused by the gate"
        return budget.hold(org_id=org_id, picodollars=known, now=now)

    def open_credential(self, run: Run) -> Credential:
        """
        Check the entitlement again, because the run may have been queued for a while, and open a key.

        :raises RenseiError: METERED_NOT_ENTITLED or METERED_KEY_NOT_CONFIGURED
        :raises CredentialUnreadable: if the vault cannot open the key
        """
        metered_gate(Entitlement.objects.for_org(run.org).first())
        return super().open_credential(run)

    def _require_entitlement(self, facts: DispatchContext, at_most: int | None) -> None:
        metered_gate(facts.entitlement)

    def _require_budget(self, facts: DispatchContext, at_most: int | None) -> None:
        if facts.budget is not None and at_most is not None:
            budget.require_room(facts.budget, picodollars=at_most)
