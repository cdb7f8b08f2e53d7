"""What the current month costs, by who pays: each payer has a figure, and no figure mixes two."""

from dataclasses import dataclass

from billing.ledger import reports
from billing.ledger.reports import UsageLine
from billing.limits.budget import Budget
from billing.limits.snapshot import BillingSnapshot
from rensei.core.auth_modes import AuthMode
from rensei.orgs.models import Org


@dataclass(frozen=True, kw_only=True)
class MonthFigures:
    """The month's calls under each auth mode, its sandboxes, and the metered budget if there is one."""

    byok: UsageLine
    capacity: UsageLine
    metered: UsageLine
    shared: UsageLine
    host_session: UsageLine
    metered_is_enabled: bool
    budget: Budget | None


def month_figures(org: Org, snapshot: BillingSnapshot) -> MonthFigures:
    by_mode = reports.calls_of_month(org, snapshot.now)
    lines = {mode: by_mode.get(mode.value, UsageLine(key=mode.value)) for mode in AuthMode}
    return MonthFigures(
        byok=lines[AuthMode.BYOK],
        capacity=by_mode.get(reports.CAPACITY, UsageLine(key=reports.CAPACITY)),
        metered=lines[AuthMode.METERED],
        shared=lines[AuthMode.SHARED],
        host_session=lines[AuthMode.HOST_SESSION],
        metered_is_enabled=snapshot.entitlement is not None and snapshot.entitlement.metered_enabled,
        budget=snapshot.budget,
    )
