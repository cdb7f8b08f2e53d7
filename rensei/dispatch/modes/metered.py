"""Metered: a platform key signs, and the organization is billed through Rensei's cost ledger."""

from collections.abc import Mapping
from datetime import datetime
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
from rensei.dispatch.modes.base import ModelUnpriced, require_price
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

    def gate(self, facts: DispatchContext, *, at_most: int | None) -> None:
        """
        Check the entitlement, the key, the price and, if the budget was loaded for a preview, the budget.

        The binding check of the budget is the conditional UPDATE of `hold`.

        :raises RenseiError: METERED_NOT_ENTITLED, METERED_KEY_NOT_CONFIGURED, MODEL_UNPRICED or METERED_BUDGET_EXCEEDED
        """
        metered_gate(facts.entitlement)
        self.require_key(facts)
        require_price(facts, self.mode)
        if facts.budget is not None and at_most is not None:
            budget.require_room(facts.budget, picodollars=at_most)

    def hold(self, *, org_id: str, at_most: Mapping[str, int | None], now: datetime) -> Mapping[str, RenseiError]:
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
