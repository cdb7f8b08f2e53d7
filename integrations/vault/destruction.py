"""Destroying an organization's data keys, so that nothing that they sealed opens again, with a receipt."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from django.db.models import F

from integrations.models import DataKey, Integration
from integrations.vault import kek_providers
from integrations.vault.errors import CredentialUnreadable, VaultFault
from integrations.vault.kek import DestroyedKey
from rensei.audit.models import AuditEvent
from rensei.audit.record import record, record_system
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError, StoredError
from rensei.core.transactions import durable
from rensei.orgs.access import Access
from rensei.orgs.models import Org

ACTION = "vault.keys_destroyed"
OUTER_ACTION = "vault.outer_key_destroyed"
DESTROYED: StoredError = {
    "code": "CREDENTIAL_UNREADABLE",
    "detail": "The organization's data keys were destroyed, and this key with them.",
    "fix": "Rotate this integration with a new key.",
}


class NothingToDestroy(RenseiError):
    """The organization has no data key."""

    code = "NOT_FOUND"
    status = 404
    title = "No keys to destroy"
    message = "{slug} has no data key: nothing of it is sealed."


def destroy_keys(
    org: Org,
    *,
    actor: str,
    backups_kept_days: int | None,
    sign: Callable[[Mapping[str, object]], str],
    access: Access | None = None,
) -> dict[str, Any]:
    """
    Delete all data keys of an organization. Its integrations stay, without a key that opens, and may get a new one.

    The receipt is an event of the audit log, written in the same transaction: it can be neither changed nor removed
    unseen, and stays when the organization is deleted.

    :param actor: who orders it, for the receipt and the audit log
    :param access: the member who orders it; None if an operator does, by the command
    :param backups_kept_days: how long backups of the database are kept; None if that is not known
    :param sign: signs the receipt; if it raises, nothing is destroyed
    :raises NothingToDestroy: if there is no data key
    :raises CredentialUnreadable: if a key service does not destroy the organization's own key; no data key is then
    """
    if not DataKey.objects.filter(org=org).exists():
        # A destruction that was killed at its end has left names that point to destroyed keys.
        _forget_outer_keys(org)
        raise NothingToDestroy(slug=org.slug)
    sign({})  # If nothing can be signed, nothing is destroyed.
    _destroy_outer_keys(org, actor=actor, access=access)
    with durable():
        # Data keys refer to the organization's row, so none is added until this has been committed.
        Org.objects.select_for_update().get(pk=org.pk)
        # In the order in which a rotation locks them.
        keys = list(DataKey.objects.select_for_update().filter(org=org).order_by("pk"))
        if not keys:
            raise NothingToDestroy(slug=org.slug)
        keys.sort(key=lambda key: key.version)
        outer = _destroyed_outer_keys(org, keys)
        now = database_now()
        integrations = Integration.objects.for_org(org)
        receipt: dict[str, Any] = {
            "organization": org.pk,
            "slug": org.slug,
            "destroyedAt": now.isoformat(),
            "orderedBy": actor,
            "dataKeys": [{"id": str(key.pk), "version": key.version, "wrappedBy": key.kek_id} for key in keys],
            "integrations": [
                {"id": pk, "keyHint": hint} for pk, hint in integrations.order_by("pk").values_list("pk", "key_hint")
            ],
            # What pages show of federations is a copy, which is no secret and is not sealed.
            "stillReadable": [
                {"integration": pk, **(ids or {})}
                for pk, ids in integrations.filter(federation__isnull=False)
                .order_by("pk")
                .values_list("pk", "federation")
            ],
            "outerKeys": [{"id": key.name, "finalAt": key.final_at.isoformat()} for _, key in outer],
            "backups": _about_backups(now, backups_kept_days, keys, outer),
        }
        receipt["signature"] = sign(receipt)
        DataKey.objects.filter(pk__in=[key.pk for key in keys]).delete()
        # The version changes, so that what has read the key before cannot seal it again.
        integrations.update(
            status=Integration.Status.FAILING, last_error=DESTROYED, secret_version=F("secret_version") + 1
        )
        _record(ACTION, receipt, org=org, actor=actor, access=access)
    with suppress(CredentialUnreadable):
        # The keys are destroyed. Only a new key waits until their names are free.
        _forget_outer_keys(org)
    return receipt


def _destroy_outer_keys(org: Org, *, actor: str, access: Access | None) -> None:
    """
    Destroy the keys that key services hold for an organization alone. It is a call, and is made in no transaction.

    Each one is recorded right after, since it stays destroyed also where a later step fails.

    :raises CredentialUnreadable: if a service refuses, or does not answer. What it has destroyed stays so
    """
    used = set(DataKey.objects.filter(org=org).values_list("kek_id", flat=True))
    try:
        for provider in kek_providers.configured():
            has_wrapped = any(map(provider.holds, used))
            destroyed = provider.destroy_key_of(org.pk, has_wrapped=has_wrapped)
            if destroyed is not None:
                detail = {
                    "id": destroyed.name,
                    "finalAt": destroyed.final_at.isoformat(),
                    "kek": provider.current_id(),
                }
                with durable():
                    _record(OUTER_ACTION, detail, org=org, actor=actor, access=access)
    except VaultFault as fault:
        raise CredentialUnreadable(reason=fault) from None


def _forget_outer_keys(org: Org) -> None:
    """:raises CredentialUnreadable: if a service refuses, or does not answer"""
    try:
        for provider in kek_providers.configured():
            provider.forget_key_of(org.pk)
    except VaultFault as fault:
        raise CredentialUnreadable(reason=fault) from None


def _destroyed_outer_keys(org: Org, keys: Iterable[DataKey]) -> list[tuple[str, DestroyedKey]]:
    """List the outer keys of the organization that were destroyed since its oldest data key, each with its id here."""
    since = min(key.created_at for key in keys)
    events = AuditEvent.objects.filter(org_id=org.pk, action=OUTER_ACTION, occurred_at__gte=since).order_by("pk")
    found: dict[str, tuple[str, DestroyedKey]] = {}
    for told in events.values_list("detail", flat=True):
        key = DestroyedKey(name=told["id"], final_at=datetime.fromisoformat(told["finalAt"]))
        # One that is found again, destroyed, was so since the first time.
        found.setdefault(key.name, (told["kek"], key))
    return list(found.values())


def _about_backups(
    now: datetime, kept_days: int | None, keys: Sequence[DataKey], outer: Sequence[tuple[str, DestroyedKey]]
) -> dict[str, Any]:
    """
    State which backups still open what was sealed: those of the database, together with the outer key.

    Where a data key was made under a key of the organization alone, none does from the end of that on. Where it was
    re-wrapped by it, older backups have it under another outer key. So they may where a rotation has deleted data keys.
    """

    def backups_of(moment: datetime) -> datetime | None:
        return None if kept_days is None else moment + timedelta(days=kept_days)

    final = {kek_id: key.final_at for kek_id, key in outer}
    ends: list[datetime | None] = []
    for key in keys:
        ends.append(final[key.kek_id] if key.kek_id in final else backups_of(now))
        if key.rewrapped_at is not None:
            ends.append(backups_of(key.rewrapped_at))
    if len(keys) < keys[-1].version:
        ends.append(backups_of(now))
    known = [end for end in ends if end is not None]
    until, kept_until = (max(known) if len(known) == len(ends) else None), backups_of(now)
    return {
        "madeBefore": now.isoformat(),
        "keptUntil": kept_until.isoformat() if kept_until else None,
        "openUntil": until.isoformat() if until else None,
    }


def _record(action: str, detail: dict[str, Any], *, org: Org, actor: str, access: Access | None) -> None:
    if access is not None:
        record(access, action, object_id=org.pk, **detail)
    else:
        record_system(actor, action, object_id=org.pk, org_id=org.pk, **detail)
