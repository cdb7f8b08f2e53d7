"""Memberships and roles that an operator sets: for a limited time, with a mail to the owners: who, why, until when."""

from datetime import UTC

import structlog
from django.conf import settings
from django.utils import timezone

from rensei.audit.record import record_system
from rensei.core import jobs, mails
from rensei.core.limits import limit
from rensei.core.transactions import durable
from rensei.orgs.models import Membership, Role, User
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
