"""Memberships and roles that an operator sets: for a limited time, with a mail to the owners: who, why, until when."""

from datetime import UTC, timedelta
from functools import partial

import structlog
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from rensei.audit.record import record_operator, record_system
from rensei.core import jobs, mails
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

    It is in the organization's audit log with its reason, and mailed to the owners. A membership that the operator
    has already stays as it is.
    """
    with durable():
        # Two requests of one operator at once give one membership.
        User.objects.select_for_update().get(pk=operator.pk)
        found: Membership | None = Membership.objects.live().filter(org=org, user=operator).first()
        if found is not None:
            return found
        Membership.objects.filter(org=org, user=operator).delete()
        ends_at = timezone.now() + timedelta(hours=hours)
        membership = Membership.objects.create(org=org, user=operator, role=Role.AUDITOR, ends_at=ends_at)
        record_operator(
            operator,
            "membership.created",
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
        "Everything that a member does is in the audit log. You can end the access earlier on the page of members:\n\n"
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
        if membership is None:
            return
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
