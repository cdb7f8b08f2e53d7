"""What is sealed: ledger lines, with one chain for each organization, and audit events, with one chain for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from django.db.models import QuerySet

from billing.integrity import digests
from billing.integrity.sealed_file import AUDIT_CHAIN
from billing.models import AuditSeal, CostEvent, EventToSeal, LedgerAnchor, LedgerSeal, LineToSeal
from rensei.audit.models import AuditEvent
from rensei.orgs.models import Org

# All content of a row, listed explicitly: this is a format and must not change with another list. Null fields are
# left out, so adding a column that is null for existing rows does not change their digests.
LINE_COLUMNS = (
    "id",
    "org_id",
    "kind",
    "adjusts_id",
    "run_id",
    "attempt_id",
    "profile_id",
    "project_id",
    "auth_mode",
    "payer",
    "billing_class",
    "pool_id",
    "credential_id",
    "provider",
    "model_id",
    "served_model_id",
    "provider_request_id",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "web_search_requests",
    "thinking_tokens",
    "input_picodollars",
    "output_picodollars",
    "cache_read_picodollars",
    "cache_write_5m_picodollars",
    "cache_write_1h_picodollars",
    "web_search_picodollars",
    "amount_picodollars",
    "billed",
    "billed_picodollars",
    "estimated",
    "occurred_at",
    "sandbox_seconds",
    "sandbox_second_picodollars",
)
EVENT_COLUMNS = (
    "id",
    "org_id",
    "user_id",
    "actor",
    "token_id",
    "action",
    "object_id",
    "detail",
    "address",
    "occurred_at",
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """An append-only table, with its seals and the list of the rows that have no seal yet."""

    rows: type[Any]
    seals: type[Any]
    waiting: type[Any]
    columns: tuple[str, ...]
    # Whether each organization has its own chain.
    by_org: bool
    # The kind of a difference, and the name of a row in it.
    kind: str
    noun: str

    def chain(self, org_id: str | None) -> QuerySet[Any]:
        """Return the seals of one chain. The audit log's chain belongs to no organization."""
        found: QuerySet[Any] = self.seals.objects.all()
        return found.filter(org_id=org_id) if self.by_org else found

    def chain_of(self, row: Any) -> str | None:
        """Return the organization whose chain a row belongs to, or None for the chain of all."""
        org_id: str | None = row.org_id if self.by_org else None
        return org_id

    def name_of(self, org_id: str | None) -> str:
        """Return the name of a chain as used in its digests."""
        return org_id or self.kind

    def content(self, row: Any) -> dict[str, Any]:
        """Return the content of a row that its digest covers."""
        content = {name: value for name in self.columns if (value := getattr(row, name)) is not None}
        content["occurred_at"] = row.occurred_at.astimezone(UTC).isoformat(timespec="microseconds")
        return content

    def digest(self, row: Any, *, seq: int, previous: str) -> str:
        """Return the digest of a row at its place in the chain."""
        chain = self.name_of(self.chain_of(row))
        return digests.of_row(self.content(row), chain=chain, seq=seq, previous=previous)


LEDGER = Record(
    rows=CostEvent,
    seals=LedgerSeal,
    waiting=LineToSeal,
    columns=LINE_COLUMNS,
    by_org=True,
    kind="seal",
    noun="line",
)
AUDIT = Record(
    rows=AuditEvent,
    seals=AuditSeal,
    waiting=EventToSeal,
    columns=EVENT_COLUMNS,
    by_org=False,
    kind=AUDIT_CHAIN,
    noun="event",
)
RECORDS = (LEDGER, AUDIT)


def chain_ids(record: Record) -> Sequence[str | None]:
    """List all chains of a record, including those of a ledger that only an anchor still mentions."""
    if not record.by_org:
        return [None]
    anchored = LedgerAnchor.objects.exclude(org=None).order_by().values_list("org_id", flat=True).distinct()
    return sorted({*Org.objects.values_list("pk", flat=True), *anchored})
