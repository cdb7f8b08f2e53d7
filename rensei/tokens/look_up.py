"""The access that an API token gives, and which tokens are valid now."""

from datetime import datetime, timedelta

from django.db.models import Q, QuerySet
from django.utils import timezone

from rensei.core.secret import token_digest
from rensei.orgs.access import Access
from rensei.orgs.models import Role
from rensei.tokens.models import ApiToken

TOKEN_PREFIX = "rsk_live_"  # noqa: S105 – public on purpose: secret scanners match it
LAST_USED_EVERY = timedelta(minutes=1)


def for_token(*, token: str, address: str | None = None) -> Access | None:
    """Look up the access of an API token; None for an unknown, revoked or expired one."""
    now = timezone.now()
    tokens = alive_tokens(now).select_related("org", "membership__user", "project", "host")
    found = tokens.filter(digest=token_digest(token)).first()
    if found is None:
        return None
    if found.last_used_at is None or found.last_used_at < now - LAST_USED_EVERY:
        ApiToken.objects.filter(pk=found.pk).update(last_used_at=now, last_used_address=address)
    return Access(
        user=found.membership.user,
        org=found.org,
        role=Role(found.membership.role),
        membership=found.membership,
        project=found.project,
        host=found.host,
        token=found,
        address=address,
        caps=found.caps,
    )


def alive_tokens(now: datetime) -> QuerySet[ApiToken]:
    """Select the valid tokens: not revoked or expired, of an active member and machine."""
    return (
        ApiToken.objects.filter(revoked_at=None, membership__user__is_active=True)
        .filter(Q(expires_at=None) | Q(expires_at__gt=now))
        .filter(Q(host=None) | Q(host__revoked_at=None))
        .filter(Q(membership__ends_at=None) | Q(membership__ends_at__gt=now))
    )
