"""Limits, the cost ledger and its seals."""

from billing.models.integrity import AuditSeal, EventToSeal, LedgerAnchor, LedgerSeal, LedgerWitness, LineToSeal
from billing.models.ledger import CALL_COLUMNS, CostEvent, CostEventQuerySet, Statement, UsageDaily
from billing.models.limits import (
    BillingSetting,
    BudgetHold,
    BudgetUsage,
    CapHold,
    Entitlement,
    Hold,
    SharedSpending,
    SharedUsage,
)

__all__ = [
    "CALL_COLUMNS",
    "AuditSeal",
    "BillingSetting",
    "BudgetHold",
    "BudgetUsage",
    "CapHold",
    "CostEvent",
    "CostEventQuerySet",
    "Entitlement",
    "EventToSeal",
    "Hold",
    "LedgerAnchor",
    "LedgerSeal",
    "LedgerWitness",
    "LineToSeal",
    "SharedSpending",
    "SharedUsage",
    "Statement",
    "UsageDaily",
]
