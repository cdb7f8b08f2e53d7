"""
Everything that is sealed: each kind of record is registered by the module that seals it.

So a new data key can seal all records of its owner again. A test fails where a column is sealed and not registered.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Any, Protocol

from django.db.models import Exists, Model, OuterRef

from integrations.models import DataKey
from integrations.vault import data_keys, envelope, openings
from integrations.vault.errors import CredentialUnreadable, VaultFault
from integrations.vault.openings import Reason, Why
from integrations.vault.vault import SealContext
from rensei.core import jobs
from rensei.core.clock import database_now
from rensei.core.querysets import pages
from rensei.orgs.models import Org

# A record that is being sealed while the data key changes is stored within this time.
OLD_KEYS_FOR = timedelta(hours=1)
BATCH = 200
OWNERS_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sealed record. `replace` stores another one in its place, unless it was changed meanwhile."""

    name: str
    sealed: bytes
    context: SealContext
    replace: Callable[[bytes], bool]


class SealedRecords(Protocol):
    """A kind of sealed records. `columns` are those of the database that hold them, as `app.Model.field`."""

    @property
    def columns(self) -> Sequence[str]: ...

    def of(self, org: Org | None) -> Iterator[Record]:
        """List the records that an organization's data key seals, or the platform's."""


@dataclass(frozen=True)
class SealedColumn:
    """A binary column of a model whose rows belong to an organization, or to the platform."""

    model: type[Model]
    column: str
    context: Callable[[Any], SealContext]

    @property
    def columns(self) -> Sequence[str]:
        return (f"{self.model._meta.label}.{self.column}",)  # noqa: SLF001 - Django's documented way from a model

    def of(self, org: Org | None) -> Iterator[Record]:
        has_org = any(field.name == "org" for field in self.model._meta.get_fields())  # noqa: SLF001
        if has_org != (org is not None):
            return
        rows = self.model._default_manager.all()  # noqa: SLF001
        rows = rows.filter(org=org).select_related("org") if has_org else rows
        for row in chain.from_iterable(pages(rows, size=BATCH)):
            yield self._record(row)

    def _record(self, row: Model) -> Record:
        sealed = bytes(getattr(row, self.column))
        same = self.model._default_manager.filter(pk=row.pk, **{self.column: sealed})  # noqa: SLF001
        return Record(
            name=f"{self.model.__name__} {row.pk}",
            sealed=sealed,
            context=self.context(row),
            replace=lambda new: bool(same.update(**{self.column: new})),
        )


registered: list[SealedRecords] = []


def register(records: SealedRecords) -> None:
    registered.append(records)


@dataclass(kw_only=True)
class Resealed:
    """What a change of data keys has done for one owner. `failed` names the records that do not open, and why."""

    records: int
    keys_deleted: int
    failed: dict[str, str]


def rotate_data_key(org: Org | None) -> Resealed:
    """
    Seal all records of an owner again, by a new data key.

    The old data key is deleted by a later call, when `OLD_KEYS_FOR` has passed and no record names it: a record may
    have been sealed by it a moment ago and not be stored yet. If a call is killed, another one seals what is left.

    :raises CredentialUnreadable: if the outer key is not available
    """
    old = DataKey.objects.filter(org=org, purpose=DataKey.Purpose.SEAL)
    if not old.exists():
        return Resealed(records=0, keys_deleted=0, failed={})
    try:
        data_keys.add_version(org=org, purpose=DataKey.Purpose.SEAL)
    except VaultFault as fault:
        raise CredentialUnreadable(reason=fault) from None
    return reseal(org)


def finish_rotations() -> None:
    """Delete older data keys that no record names any more, and seal again what a rotation has left."""
    kept_since = database_now() - OLD_KEYS_FOR
    older = DataKey.objects.filter(purpose=DataKey.Purpose.SEAL, version__gt=1, created_at__lt=kept_since)
    due = older.filter(Exists(DataKey.objects.filter(org=OuterRef("org"), version__lt=OuterRef("version"))))
    owners = due.filter(org__isnull=False).order_by("org_id").values_list("org_id", flat=True).distinct()
    jobs.for_each(
        owners[:OWNERS_AT_ONCE], lambda org_id: reseal(Org.objects.get(pk=org_id)), job="finish-key-rotations"
    )
    if DataKey.objects.filter(org=None, purpose=DataKey.Purpose.SEAL).count() > 1:
        reseal(None)


def reseal(org: Org | None) -> Resealed:
    """
    Seal by the newest data key of an owner what an older one has sealed, and delete older ones that are not needed.

    :raises CredentialUnreadable: if the newest data key is not available
    """
    done = Resealed(records=0, keys_deleted=0, failed={})
    try:
        newest, key = data_keys.current_key(org=org)
    except VaultFault as fault:
        raise CredentialUnreadable(reason=fault) from None
    needed: set[uuid.UUID] = {newest}
    for records in registered:
        for record in records.of(org):
            try:
                done.records += _reseal_one(record, newest, key, org=org, needed=needed)
            except VaultFault as fault:
                done.failed[record.name] = str(fault)
    if not done.failed:
        # A key that was added meanwhile is newer, and records are sealed by it already.
        version = DataKey.objects.values_list("version", flat=True).get(pk=newest)
        keys = DataKey.objects.filter(org=org, purpose=DataKey.Purpose.SEAL, version__lt=version)
        older = keys.exclude(pk__in=needed)
        superseded = DataKey.objects.filter(pk=newest, created_at__lt=database_now() - OLD_KEYS_FOR)
        if superseded.exists():
            done.keys_deleted, _ = older.delete()
    return done


def _reseal_one(record: Record, newest: uuid.UUID, key: bytes, *, org: Org | None, needed: set[uuid.UUID]) -> bool:
    """:raises VaultFault: if the record does not open"""
    key_id = envelope.key_id_of(record.sealed)
    if key_id == newest:
        return False
    plaintext = envelope.open_sealed(
        record.sealed, key=data_keys.key_by_id(key_id, org=org), context=record.context.parts()
    )
    openings.note(
        record_id=record.context.record_id,
        version=record.context.version,
        org_id=org.id if org else None,
        why=Why(reason=Reason.ROTATION, actor="rotate-data-keys"),
    )
    new = envelope.seal(plaintext, key=key, key_id=newest, context=record.context.parts())
    if record.replace(new):
        return True
    needed.add(key_id)  # It was changed meanwhile, perhaps by the old key; the next call looks again.
    return False
