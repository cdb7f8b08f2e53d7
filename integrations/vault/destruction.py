"""Destroying an organization's data keys, so that nothing that they sealed opens again, with a receipt."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db.models import F

from integrations.models import DataKey, Integration
from integrations.vault import kek_providers
from integrations.vault.errors import CredentialUnreadable, VaultFault
from integrations.vault.kek import DestroyedKey, KekProvider
from rensei.audit.record import record, record_system
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError, StoredError
from rensei.core.transactions import durable
from rensei.orgs.access import Access
from rensei.orgs.models import Org

ACTION = "vault.keys_destroyed"
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
        raise NothingToDestroy(slug=org.slug)
    sign({})  # If nothing can be signed, nothing is destroyed.
    outer = _destroy_outer_keys(org)
    with durable():
        # Data keys refer to the organization's row, so none is added until this has been committed.
        Org.objects.select_for_update().get(pk=org.pk)
        keys = list(DataKey.objects.select_for_update().filter(org=org).order_by("version", "pk"))
        if not keys:
            raise NothingToDestroy(slug=org.slug)
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
            "outerKeys": [{"id": key.name, "finalAt": key.final_at.isoformat()} for key in outer.values()],
            "backups": _about_backups(now, backups_kept_days, keys, outer),
        }
        receipt["signature"] = sign(receipt)
        DataKey.objects.filter(pk__in=[key.pk for key in keys]).delete()
        # The version changes, so that what has read the key before cannot seal it again.
        integrations.update(
            status=Integration.Status.FAILING, last_error=DESTROYED, secret_version=F("secret_version") + 1
        )
        if access is not None:
            record(access, ACTION, object_id=org.pk, **receipt)
        else:
            record_system(actor, ACTION, object_id=org.pk, org_id=org.pk, **receipt)
    return receipt


def _destroy_outer_keys(org: Org) -> dict[KekProvider, DestroyedKey]:
    """
    Destroy the keys that key services hold for an organization alone. It is a call, and is made in no transaction.

    :raises CredentialUnreadable: if a service refuses, or does not answer. What it has destroyed stays so
    """
    found = {}
    try:
        for provider in kek_providers.configured():
            destroyed = provider.destroy_key_of(org.pk)
            if destroyed is not None:
                found[provider] = destroyed
    except VaultFault as fault:
        raise CredentialUnreadable(reason=fault) from None
    return found


def _about_backups(
    now: datetime, kept_days: int | None, keys: Sequence[DataKey], outer: Mapping[KekProvider, DestroyedKey]
) -> dict[str, Any]:
    """
    State which backups still open what was sealed: those of the database, together with the outer key.

    Where each data key was wrapped by a key of the organization alone, none does from the end of that on.
    """
    until = None if kept_days is None else (now + timedelta(days=kept_days)).isoformat()
    is_covered = all(any(provider.holds(key.kek_id) for provider in outer) for key in keys)
    final = max(key.final_at for key in outer.values()).isoformat() if outer and is_covered else until
    return {"madeBefore": now.isoformat(), "keptUntil": until, "openUntil": final}
