"""Memberships and roles that an operator sets: for a limited time, with a mail to the owners: who, why, until when."""

from datetime import UTC, timedelta
from functools import partial

import structlog
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from rensei.audit.record import record_operator, record_system
from rensei.core import jobs, mails
from rensei.core.errors import FieldError
from rensei.core.limits import limit
from rensei.core.transactions import durable
from rensei.orgs.models import Membership, Org, Role, User
from rensei.orgs.services import revoke_machines_of

JOB = "end-memberships"
# The condition, for a periodic job, that the time of any member has ended.
ANY_OVER = "EXISTS (SELECT 1 FROM orgs_membership WHERE ends_at <= {now})"
ENDED_AT_ONCE = 500
HOURS_DEFAULT = 1
HOURS_MAX = limit(
    24, "hours", what="Access of an operator to an organization", told="operators: the admin's form says so"
)

logger = structlog.get_logger(__name__)


def view_as(org: Org, *, operator: User, reason: str, hours: int, address: str | None) -> Membership:
    """
    Give an operator read-only access to an organization, as its auditor, for some hours.

    It is in the organization's audit log with its reason, and mailed to the owners. Access that the operator already
    has in this way gets the new end.

    :raises FieldError: if the operator is a member in another way, which gives other rights or has no end
    """
    if org.deleting_at is not None:
        raise FieldError(pointer="", reason=f"{org.name} was deleted, so there is nothing to view.")
    with durable():
        # Two requests of one operator at once give one membership.
        User.objects.select_for_update().get(pk=operator.pk)
        own = Membership.objects.select_related("org", "user").select_for_update(of=("self",))
        membership: Membership | None = own.filter(org=org, user=operator).first()
        now = timezone.now()
        if membership is not None and membership.ends_at is not None and membership.ends_at <= now:
            _remove(membership)
            membership = None
        ends_at = now + timedelta(hours=hours)
        if membership is None:
            action = "membership.created"
            membership = Membership.objects.create(org=org, user=operator, role=Role.AUDITOR, ends_at=ends_at)
        elif membership.role == Role.AUDITOR and membership.ends_at is not None:
            action = "membership.extended"
            membership.ends_at = ends_at
            membership.save(update_fields=["ends_at"])
        else:
            raise FieldError(pointer="", reason=_is_member(membership))
        record_operator(
            operator,
            action,
            object_id=membership.pk,
            org=org,
            address=address,
            name=operator.email,
            role=membership.role,
            reason=reason,
            ends_at=ends_at.isoformat(),
        )
        tell = partial(tell_owners, membership, operator=operator, reason=reason)
        transaction.on_commit(tell, robust=True)
    return membership


def _is_member(membership: Membership) -> str:
    ends_at = membership.ends_at
    until = f"until {ends_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if ends_at else "without an end"
    role = membership.get_role_display().lower()
    return (
        f"You are a member of {membership.org.name}, as {role}, {until}. Open its pages as that, or end the membership "
        "first."
    )


def tell_owners(membership: Membership, *, operator: User, reason: str) -> None:
    """Mail the owners, once the change is committed. Owners without a mail find it in the audit log."""
    org = membership.org
    owners = Membership.objects.filter(org=org, role=Role.OWNER, user__is_active=True).exclude(user=operator)
    to = list(owners.order_by("user__email").values_list("user__email", flat=True))
    subject = f"Rensei: an operator gave {membership.user.email} access to {org.name}"
    ends_at = membership.ends_at
    until = f"It ends by itself at {ends_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC." if ends_at else "It has no end."
    body = (
        f"{operator.email}, who operates this server, gave {membership.user.email} the role "
        f"'{membership.get_role_display()}' in {org.name}. {until} The reason given is:\n\n{reason}\n\n"
        "Changes that a member makes are in the audit log; what is read is not recorded. You can end the access "
        "earlier on the page of members:\n\n"
        f"{settings.PUBLIC_URL}/o/{org.slug}/settings/members\n"
    )
    for address in to:
        try:
            mails.send(subject, body, [address])
        except OSError as fault:
            logger.warning("owner_not_mailed", org=org.pk, fault=type(fault).__name__)


def end_due() -> None:
    """Remove the members whose time has ended. They have had no access since then."""
    over = Membership.objects.filter(ends_at__lte=timezone.now()).order_by("ends_at")
    jobs.for_each(list(over.values_list("pk", flat=True)[:ENDED_AT_ONCE]), _end, job=JOB)


def _end(membership_id: str) -> None:
    with durable():
        found = Membership.objects.select_related("org", "user").filter(pk=membership_id, ends_at__lte=timezone.now())
        membership: Membership | None = found.select_for_update(of=("self",)).first()
        if membership is not None:
            _remove(membership)


def _remove(membership: Membership) -> None:
    """Remove a member whose time has ended, with their tokens and machines, within the caller's transaction."""
    revoke_machines_of(membership)
    record_system(
        JOB,
        "membership.ended",
        object_id=membership.pk,
        org_id=membership.org_id,
        email=membership.user.email,
        role=membership.role,
    )
    membership.delete()
