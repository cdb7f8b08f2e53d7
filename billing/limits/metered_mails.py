"""The mails about a request for metered: to the operators when it is made, to the organization when it is decided."""

from collections.abc import Sequence
from functools import partial

from django.conf import settings

from rensei.core import mails
from rensei.core.later import later
from rensei.orgs.models import MANAGERS, Membership, Org, User


def tell_operators(*, org: Org, asked_by: str, purpose: str) -> None:
    """Mail a request to the operators, after the answer to it."""
    subject = f"Rensei: {org.name} requests metered"
    reason = f"\n\n{purpose}" if purpose else ""
    body = (
        f"{asked_by} requests metered for {org.name} ({org.slug}).{reason}\n\n"
        f"Enable or decline it here:\n\n{settings.PUBLIC_URL}/admin/\n"
    )
    operators = User.objects.filter(is_staff=True, is_active=True)
    _send(subject, body, list(operators.order_by("email").values_list("email", flat=True)))


def tell_members(*, org: Org, asked_by: str, enabled: bool) -> None:
    """Mail the decision to the member who made the request, if they still belong to it, and to those who manage it."""
    if enabled:
        subject = f"Rensei: metered is enabled for {org.name}"
        body = (
            f"Your operator has enabled metered for {org.name}. Create a profile with the auth mode metered, or try "
            f"one that has it:\n\n{settings.PUBLIC_URL}/o/{org.slug}/playground\n"
        )
    else:
        subject = f"Rensei: the request for metered was declined for {org.name}"
        body = (
            f"Your operator has declined the request for metered of {org.name}. You can request it again:\n\n"
            f"{settings.PUBLIC_URL}/o/{org.slug}/settings/metered\n"
        )
    members = (
        Membership.objects.live()
        .filter(org=org, user__is_active=True, user__is_mailed_decisions=True)
        .select_related("user")
    )
    to = {member.user.email for member in members if member.role in MANAGERS or member.user.email == asked_by}
    _send(subject, body, sorted(to))


def _send(subject: str, body: str, to: Sequence[str]) -> None:
    if to:
        later.do(partial(mails.send, subject, body, to), what="mail about metered")
