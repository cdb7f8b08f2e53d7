"""Whether an organization may use metered, and the amounts set by operators."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from django.conf import settings
from django.db import transaction

from billing.limits import metered_mails
from billing.models import BillingSetting, Entitlement
from rensei.audit.record import record_operator
from rensei.core.clock import database_now
from rensei.core.errors import RenseiError, Said
from rensei.core.transactions import assert_open, durable
from rensei.orgs.models import Org, User

# An entitlement without a pending request.
NO_REQUEST = {"metered_requested_at": None, "metered_requested_by": "", "metered_requested_for": ""}


class MeteredNotEntitled(RenseiError):
    """The operators have not enabled metered for the organization."""

    code = "METERED_NOT_ENTITLED"
    status = 403
    title = "Not entitled to metered"
    message = Said(
        "Organisation is not entitled to use metered auth mode.",
        "Ask your Rensei operator{contact} to enable it, or use byok with a key of your own.",
    )


def is_metered_enabled(org_id: str) -> bool:
    """Read the current entitlement: a change applies from the next dispatch on."""
    return Entitlement.objects.filter(org_id=org_id, metered_enabled=True).exists()


def metered_gate(entitlement: Entitlement | None) -> None:
    """:raises MeteredNotEntitled: unless the operators have enabled metered for the organization"""
    if entitlement is not None and entitlement.metered_enabled:
        return
    email = settings.RENSEI_SUPPORT_EMAIL
    raise MeteredNotEntitled(contact=f" ({email})" if email else "", extra={"supportEmail": email} if email else {})


def create_entitlement(*, org: Org, **_signal: object) -> None:
    """Create the organization's entitlement, in the transaction that creates the organization."""
    assert_open()
    Entitlement.objects.create(org=org)


def set_metered(*, org_ids: Sequence[str], enabled: bool, actor_user: User, budget: int | None = None) -> list[str]:
    """
    Enable or disable metered for organizations. Returns the ids of the changed ones.

    With a `budget` in picodollars, it becomes the monthly budget of the changed ones; otherwise theirs is kept.
    """
    budgets = {} if budget is None else {"monthly_budget_picodollars": budget}
    with durable():
        entitlements = (
            Entitlement.objects.select_for_update(of=("self",))
            .select_related("org")
            .filter(org_id__in=org_ids)
            .order_by("org_id")
        )
        changing = [found for found in entitlements if found.metered_enabled is not enabled]
        for entitlement in changing:
            change_entitlement(entitlement, actor_user=actor_user, metered_enabled=enabled, **budgets)
    return [entitlement.org_id for entitlement in changing]


def change_entitlement(entitlement: Entitlement, *, actor_user: User, **changes: Any) -> None:
    """
    Change fields of one entitlement and record the actor, in the caller's transaction.

    Enabling metered closes the organization's request for it, and mails the answer once the change is committed.
    """
    assert_open()
    if changes.get("metered_enabled") and entitlement.metered_requested_at is not None:
        tell = partial(
            metered_mails.tell_members, org=entitlement.org, asked_by=entitlement.metered_requested_by, enabled=True
        )
        transaction.on_commit(tell, robust=True)
    answered = NO_REQUEST if changes.get("metered_enabled") else {}
    Entitlement.objects.filter(pk=entitlement.pk).update(**changes, **answered, updated_at=database_now())
    record_operator(actor_user, "entitlement.changed", object_id=entitlement.org_id, org=entitlement.org, **changes)


def change_setting(setting: BillingSetting, *, actor_user: User, **changes: Any) -> None:
    """Change the platform's defaults and record the actor, in the caller's transaction."""
    assert_open()
    BillingSetting.objects.filter(pk=setting.pk).update(**changes)
    record_operator(actor_user, "billing-setting.changed", object_id=str(setting.pk), **changes)
