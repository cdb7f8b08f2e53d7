"""Shared: a free-tier platform key signs, within a daily quota of runs."""

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import ClassVar

from billing.limits import quota
from billing.limits.quota import SharedQuotaExceeded
from integrations.models import PlatformKey
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import RenseiError, Said
from rensei.dispatch.context import DispatchContext
from rensei.dispatch.modes.base import Gate, Holds, ModelUnpriced
from rensei.dispatch.modes.platform_pool import PlatformPool


class SharedKeyNotConfigured(RenseiError):
    """The platform's shared key pool for the provider is empty, or does not serve the model."""

    code = "SHARED_KEY_NOT_CONFIGURED"
    status = 503
    title = "No shared key"
    message = Said(
        "No shared key is configured for provider '{provider}' and model '{model_id}'.",
        (
            "Choose a model that the free tier serves ({served}), use another auth mode, or contact your "
            "Rensei operator."
        ),
    )


class Shared(PlatformPool):
    mode: ClassVar[AuthMode] = AuthMode.SHARED
    pool = PlatformKey.Pool.SHARED
    no_key = SharedKeyNotConfigured
    billed: ClassVar[bool] = False
    refusals: ClassVar[tuple[type[RenseiError], ...]] = (SharedKeyNotConfigured, ModelUnpriced, SharedQuotaExceeded)

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        return Gate("key", self.require_key), Gate("price", self.require_price)

    @cached_property
    def limits(self) -> tuple[Gate, ...]:
        return Gate("spending", self._require_amount), Gate("quota", self._require_run)

    def hold(self, *, org_id: str, at_most: Mapping[str, int | None], now: datetime) -> Holds:
        """Refuse runs that exceed the day's quota, or whose maximum cost exceeds the amount left for shared runs."""
        known = {run_id: most for run_id, most in at_most.items() if most is not None}
        assert len(known) == len(at_most), "A model without a price was refused by the gate"
        return quota.take_shared_runs(org_id=org_id, picodollars=known, now=now)

    def _require_amount(self, facts: DispatchContext, at_most: int | None) -> None:
        if facts.shared_quota is not None and at_most is not None:
            quota.require_amount(facts.shared_quota, facts.shared_spending, picodollars=at_most, now=facts.now)

    def _require_run(self, facts: DispatchContext, at_most: int | None) -> None:
        if facts.shared_quota is not None:
            quota.require_room(facts.shared_quota, now=facts.now)
