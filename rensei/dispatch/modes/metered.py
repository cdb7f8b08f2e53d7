"""Metered: a key of the platform signs, and the organization is billed through Rensei's cost ledger."""

from datetime import datetime
from typing import ClassVar

from billing import services as billing
from integrations.models import PlatformKey
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import RenseiError
from rensei.dispatch.facts import Facts
from rensei.dispatch.models import Run
from rensei.dispatch.modes.base import require_price
from rensei.dispatch.modes.platform_pool import PlatformPool


class MeteredKeyNotConfigured(RenseiError):
    """The platform's metered pool for the provider has no healthy key for the model."""

    code = "METERED_KEY_NOT_CONFIGURED"
    status = 503
    title = "No metered key"
    message = (
        "No metered key is configured for provider '{provider}'. Contact your Rensei operator: the operator docs "
        "at /docs/operators/key-pools say how to set one up."
    )


class Metered(PlatformPool):
    mode: ClassVar[AuthMode] = AuthMode.METERED
    pool = PlatformKey.Pool.METERED
    no_key = MeteredKeyNotConfigured
    billed: ClassVar[bool] = True

    def gate(self, facts: Facts) -> None:
        """
        Check the entitlement, then the key, then the price.

        :raises RenseiError: METERED_NOT_ENTITLED, METERED_KEY_NOT_CONFIGURED or MODEL_UNPRICED
        """
        billing.metered_gate(facts.entitlement)
        self.require_key(facts)
        require_price(facts, self.mode)

    def hold(self, run: Run, *, now: datetime) -> None:
        """Without a budget there is nothing to hold."""
