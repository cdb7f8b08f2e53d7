"""Destroying an organization's data keys by one of its owners, with a receipt that the installation signs."""

from typing import Any

from django.conf import settings

from billing.integrity import receipts
from billing.integrity.anchor_keys import AnchorKeyUnavailable
from integrations.vault import destruction
from rensei.audit.models import AuditEvent
from rensei.core.errors import FieldError
from rensei.dispatch.receipts import ReceiptKeyUnavailable
from rensei.orgs.access import Access


def destroy_keys(access: Access, *, confirm: str) -> dict[str, Any]:
    """
    Destroy all data keys of the caller's organization, and return the receipt.

    :param confirm: the id of the organization, typed again
    :raises OwnersOnly: unless the caller is an owner, without an end
    :raises FieldError: if another name was typed
    :raises NothingToDestroy: if there is no data key
    :raises ReceiptKeyUnavailable: if the receipt cannot be signed; nothing is destroyed then
    """
    access.require_lasting_owner()
    if confirm != access.org.slug:
        raise FieldError(pointer="/confirm", reason=f"Type the organization's ID, {access.org.slug}, to destroy.")
    try:
        return destruction.destroy_keys(
            access.org,
            actor=access.user.email,
            backups_kept_days=settings.RENSEI_BACKUPS_KEPT_DAYS,
            sign=receipts.sign,
            access=access,
        )
    except AnchorKeyUnavailable as fault:
        raise ReceiptKeyUnavailable from fault


def latest_receipt(access: Access) -> dict[str, Any] | None:
    """Return the receipt of the organization's latest destruction, from the audit log."""
    events = AuditEvent.objects.filter(org_id=access.org.pk, action=destruction.ACTION)
    event = events.order_by("-pk").first()
    return event.detail if event is not None else None
