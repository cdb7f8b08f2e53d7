"""What is sealed: the ledger's lines, in a chain for each organization, and the audit events, in one chain of all."""

from dataclasses import dataclass
from datetime import UTC
from typing import Any

from django.db.models import QuerySet

from billing.integrity import digests
from billing.integrity.sealed_file import AUDIT_CHAIN
from billing.models import AuditSeal, CostEvent, EventToSeal, LedgerAnchor, LedgerSeal, LineToSeal
from rensei.audit.models import AuditEvent
from rensei.orgs.models import Org

# Everything that a row says, spelt out: it is a format, and must not change with another list. A field that is null is
# left out, so a column that is added later, null for the rows before it, leaves their digests as they are.
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
    """A table to which rows are only added, with its seals and the list of the rows that wait for theirs."""

    rows: type[Any]
    seals: type[Any]
    waiting: type[Any]
    columns: tuple[str, ...]
    # Whether each organization has a chain of its own.
    by_org: bool
    # The kind of a difference, and what a row is called in it.
    kind: str
    noun: str

    def chain(self, org_id: str | None) -> QuerySet[Any]:
        """Give the seals of one chain. The audit log's is that of no organization."""
        found: QuerySet[Any] = self.seals.objects.all()
        return found.filter(org_id=org_id) if self.by_org else found

    def chain_of(self, row: Any) -> str | None:
        """Tell which chain a row belongs to."""
        org_id: str | None = row.org_id if self.by_org else None
        return org_id

    def name_of(self, org_id: str | None) -> str:
        """Name a chain as its digests do."""
        return org_id or self.kind

    def content(self, row: Any) -> dict[str, Any]:
        """Give all that a row says, as its digest covers it."""
        content = {name: value for name in self.columns if (value := getattr(row, name)) is not None}
        content["occurred_at"] = row.occurred_at.astimezone(UTC).isoformat(timespec="microseconds")
        return content

    def digest(self, row: Any, *, seq: int, previous: str) -> str:
        """Make the digest of a row at its place in the chain."""
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


def chain_ids(record: Record) -> list[str | None]:
    """Name all chains of a record, and those of a ledger that only an anchor remembers."""
    if not record.by_org:
        return [None]
    anchored = LedgerAnchor.objects.exclude(org=None).order_by().values_list("org_id", flat=True).distinct()
    return sorted({*Org.objects.values_list("pk", flat=True), *anchored})
