"""An organization's request for metered. It is listed on the operators' front page until they enable or decline it."""

from django.db.models import QuerySet

from billing.limits import metered_mails
from billing.limits.entitlement import NO_REQUEST
from billing.models import Entitlement
from rensei.audit.record import record, record_operator
from rensei.core.clock import database_now
from rensei.core.errors import FieldError
from rensei.core.transactions import durable
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User

PURPOSE_LENGTH = 300


def request_metered(access: Access, *, purpose: str) -> Entitlement:
    """
    Request metered from the operators. A pending request is kept, and nothing happens where metered is enabled.

    :raises NotPermitted: unless the caller manages the organization, with an API token not limited to one project
    :raises FieldError: if the purpose is too long
    """
    access.require_org_manager()
    purpose = " ".join(purpose.split())
    if len(purpose) > PURPOSE_LENGTH:
        raise FieldError(pointer="/purpose", reason=f"Say it in at most {PURPOSE_LENGTH} characters.")
    is_new = False
    with durable():
        asked = Entitlement.objects.for_org(access.org).filter(metered_enabled=False, metered_requested_at=None)
        if asked.update(
            metered_requested_at=database_now(),
            metered_requested_by=access.user.email,
            metered_requested_for=purpose,
        ):
            record(access, "metered.requested", object_id=access.org.id, purpose=purpose)
            is_new = True
    if is_new:
        metered_mails.tell_operators(org=access.org, asked_by=access.user.email, purpose=purpose)
    return entitlement_of(access.org)


def entitlement_of(org: Org) -> Entitlement:
    """Read whether metered is enabled, and since when the organization's request is pending."""
    found: Entitlement = Entitlement.objects.for_org(org).get()
    return found


def waiting() -> QuerySet[Entitlement]:
    """List the pending requests, the oldest first."""
    asked = Entitlement.objects.filter(metered_requested_at__isnull=False)
    return asked.select_related("org").order_by("metered_requested_at")


def decline(*, org_ids: list[str], operator: User) -> int:
    """Remove requests without enabling metered. The organization may request it again. Returns the number removed."""
    with durable():
        asked = list(waiting().select_for_update(of=("self",)).filter(org_id__in=org_ids))
        Entitlement.objects.filter(pk__in=[entitlement.pk for entitlement in asked]).update(**NO_REQUEST)
        for entitlement in asked:
            record_operator(operator, "metered.declined", object_id=entitlement.org_id, org=entitlement.org)
    for entitlement in asked:
        metered_mails.tell_members(org=entitlement.org, asked_by=entitlement.metered_requested_by, enabled=False)
    return len(asked)
