"""The one way to learn whose data a request may see, and what its caller may do."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.utils import timezone

from rensei.core import networks
from rensei.core.errors import NotPermitted
from rensei.orgs import scopes
from rensei.orgs.models import (
    MANAGERS,
    WRITERS,
    ApiToken,
    AuditEvent,
    Host,
    KillSwitch,
    Membership,
    Org,
    Project,
    Role,
    User,
)
from rensei.orgs.scopes import Needs, Scope

TOKEN_PREFIX = "rsk_live_"  # noqa: S105 – public on purpose: secret scanners match it
LAST_USED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who is asking, in which organization, with which role, and how they proved it."""

    user: User
    org: Org
    role: Role
    membership: Membership
    project: Project | None = None
    host: Host | None = None
    token: ApiToken | None = None
    address: str | None = None
    # Why the operators have suspended the organization, for the pages to say. Dispatches look for themselves.
    suspended_because: str | None = None

    @property
    def scopes(self) -> frozenset[str]:
        """What the caller's token may be used for. A person in a browser has every scope."""
        return frozenset(self.token.scopes) if self.token else frozenset(Scope)

    def require_scope(self, needs: Needs | None, *, address: str | None) -> None:
        """
        Hold the caller's token to its scopes and its networks.

        :raises ScopeMissing: if it was not made for this
        :raises ClosedToMachines: if it is a machine's, and this gives access to others
        :raises NetworkNotAllowed: if it is not for use from the caller's address
        """
        if self.token is not None:
            networks.require(self.token.allowed_networks, address)
            scopes.require(needs, scopes=self.token.scopes, of_machine=self.host is not None)

    @property
    def manages(self) -> bool:
        return self.role in MANAGERS

    @property
    def writes(self) -> bool:
        return self.role in WRITERS

    @property
    def sees_everyone(self) -> bool:
        """Whether the caller reads other members' tokens and machines too."""
        return self.manages or self.role == Role.AUDITOR

    def require_manager(self) -> None:
        """:raises NotPermitted: unless the caller is an owner or admin"""
        if not self.manages:
            raise NotPermitted

    def require_writer(self) -> None:
        """:raises NotPermitted: if the caller only reads"""
        if not self.writes:
            raise NotPermitted


def for_member(*, user: User, slug: str, address: str | None = None) -> Access | None:
    """Look up a signed-in person's access to an organization; None where there is none."""
    suspended = KillSwitch.objects.filter(kind=KillSwitch.Kind.ORGANIZATION, target=OuterRef("org_id"))
    membership = (
        Membership.objects.live()
        .select_related("org", "user")
        .annotate(suspended_because=Subquery(suspended.values("reason")))
        .filter(user=user, org__slug=slug, user__is_active=True)
        .first()
    )
    if membership is None:
        return None
    return Access(
        user=membership.user,
        org=membership.org,
        role=Role(membership.role),
        membership=membership,
        address=address,
        suspended_because=membership.suspended_because,
    )


def for_token(*, token: str, address: str | None = None) -> Access | None:
    """Look up what an API token opens; None for an unknown, revoked or expired one."""
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
    )


def alive_tokens(now: datetime) -> QuerySet[ApiToken]:
    """Narrow to the tokens that let their callers in: not revoked or expired, of an active member and machine."""
    return (
        ApiToken.objects.filter(revoked_at=None, membership__user__is_active=True)
        .filter(Q(expires_at=None) | Q(expires_at__gt=now))
        .filter(Q(host=None) | Q(host__revoked_at=None))
        .filter(Q(membership__ends_at=None) | Q(membership__ends_at__gt=now))
    )


def token_digest(token: str) -> str:
    """Hash a token for look-up: the whole of it, so that no two tokens can collide."""
    return hashlib.sha256(token.encode()).hexdigest()


def record(access: Access, action: str, *, object_id: str, **detail: object) -> AuditEvent:
    """Write down that the caller did something, in the transaction of the change itself."""
    return AuditEvent.objects.create(
        org=access.org,
        user=access.user,
        actor=access.user.email,
        token_id=access.token.id if access.token else "",
        action=action,
        object_id=object_id,
        detail=detail,
        address=access.address,
    )


def record_operator(
    operator: User, action: str, *, object_id: str, org: Org | None = None, **detail: object
) -> AuditEvent:
    """Write down that an operator did something, in the transaction of the change itself."""
    return AuditEvent.objects.create(
        org=org, user=operator, actor=operator.email, action=action, object_id=object_id, detail=detail
    )


def record_person(
    user: User, action: str, *, address: str | None, actor: str | None = None, **detail: object
) -> AuditEvent:
    """Write down what happened to a person's own account, which belongs to no organization."""
    return AuditEvent.objects.create(
        user=user, actor=actor or user.email, action=action, object_id=str(user.pk), detail=detail, address=address
    )
