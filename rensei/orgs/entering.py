"""An operator makes a membership or changes its role: the organization's owners are told who did it, and why."""

import structlog
from django.conf import settings

from rensei.core import mails
from rensei.orgs.models import Membership, Role, User

logger = structlog.get_logger(__name__)


def tell_owners(membership: Membership, *, operator: User, reason: str) -> None:
    """Mail the owners, once the change is committed. Those who cannot be reached read it in the audit log."""
    org = membership.org
    owners = Membership.objects.filter(org=org, role=Role.OWNER, user__is_active=True).exclude(user=operator)
    to = list(owners.order_by("user__email").values_list("user__email", flat=True))
    subject = f"Rensei: an operator gave {membership.user.email} access to {org.name}"
    body = (
        f"{operator.email}, who operates this server, gave {membership.user.email} the role "
        f"'{membership.get_role_display()}' in {org.name}. The reason given is:\n\n{reason}\n\n"
        "Everything that a member does is in the audit log. You can remove the member on the page of members:\n\n"
        f"{settings.PUBLIC_URL}/o/{org.slug}/settings/members\n"
    )
    for address in to:
        try:
            mails.send(subject, body, [address])
        except OSError as fault:
            logger.warning("owner_not_mailed", org=org.pk, fault=type(fault).__name__)
