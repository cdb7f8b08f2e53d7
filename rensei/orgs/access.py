"""The only source of a request's organization, and of its caller's rights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from django.db.models import OuterRef, Subquery
from django.utils import timezone
from rest_framework.request import Request

from rensei.core import networks
from rensei.core.errors import NotFound, NotPermitted, RenseiError, Said
from rensei.orgs import scopes
from rensei.orgs.models import MANAGERS, WRITERS, Host, KillSwitch, Membership, Org, Project, Role, User
from rensei.orgs.scopes import Needs, Scope


class OwnersOnly(RenseiError):
    """The caller is not an owner, and only an owner may do this."""

    code = "NOT_PERMITTED"
    status = 403
    title = "Not permitted"
    message = Said("Only an owner may do this.", "Ask an owner of the organization.")


class LastingOwnersOnly(RenseiError):
    """The caller is an owner for some hours, as operators can make themselves, and this cannot be undone."""

    code = "NOT_PERMITTED"
    status = 403
    title = "Not permitted"
    message = Said(
        "Only an owner whose membership has no end may do this.", "Ask another owner of the organization to do it."
    )


class CallerToken(Protocol):
    """The fields of an API token that an access reads."""

    id: str
    pk: str
    project_id: int | None
    host_id: str | None
    scopes: list[str]
    allowed_networks: list[str]
    expires_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Access:
    """The caller: which person, in which organization, with which role, and how they authenticated."""

    user: User
    org: Org
    role: Role
    membership: Membership
    project: Project | None = None
    host: Host | None = None
    token: CallerToken | None = None
    address: str | None = None
    # The caps that hold for the runs of the token, and of those that it started.
    caps: Sequence[str] = ()
    # Why the operators have suspended the organization, for the pages to show. Dispatches check it themselves.
    suspended_because: str | None = None

    @property
    def scopes(self) -> frozenset[str]:
        """List the uses of the caller's token. A person in a browser has every scope."""
        return frozenset(self.token.scopes) if self.token else frozenset(Scope)

    def require_scope(self, needs: Needs | None, *, address: str | None) -> None:
        """
        Check the scopes and the networks of the caller's token.

        :raises ScopeMissing: if it was not made for this
        :raises ClosedToMachines: if it is a machine's, and this gives access to others
        :raises NetworkNotAllowed: if it may not be used from the caller's address
        """
        if self.token is not None:
            networks.require(self.token.allowed_networks, address)
            scopes.require(needs, scopes=self.token.scopes, of_machine=self.host is not None)

    def has_ended(self) -> bool:
        """Return whether the membership or the token has ended since it was read."""
        ends = self.membership.ends_at, self.token.expires_at if self.token else None
        return any(end is not None and end <= timezone.now() for end in ends)

    @property
    def manages(self) -> bool:
        return self.role in MANAGERS

    @property
    def writes(self) -> bool:
        return self.role in WRITERS

    @property
    def sees_everyone(self) -> bool:
        """Return whether the caller also reads other members' tokens and machines."""
        return self.manages or self.role == Role.AUDITOR

    def require_manager(self) -> None:
        """:raises NotPermitted: unless the caller is an owner or admin"""
        if not self.manages:
            raise NotPermitted

    def require_whole_org(self) -> None:
        """:raises NotPermitted: if the caller uses a token of one project, which may not change its organization"""
        if self.project is not None:
            raise NotPermitted

    def require_org_manager(self) -> None:
        """:raises NotPermitted: unless the caller is an owner or admin of the whole organization"""
        self.require_manager()
        self.require_whole_org()

    @property
    def is_lasting_owner(self) -> bool:
        """Return whether the caller is an owner without an end. One with an end may be an operator."""
        return self.role == Role.OWNER and self.membership.ends_at is None

    def require_lasting_owner(self) -> None:
        """
        Check the caller before what destroys something of the organization for good.

        :raises OwnersOnly: unless the caller is an owner
        :raises LastingOwnersOnly: if the membership has an end: no operator may do it alone
        :raises NotPermitted: if the caller uses a token of one project
        """
        if self.role != Role.OWNER:
            raise OwnersOnly
        if not self.is_lasting_owner:
            raise LastingOwnersOnly
        self.require_whole_org()

    def require_writer(self) -> None:
        """:raises NotPermitted: if the caller has read access only"""
        if not self.writes:
            raise NotPermitted


def for_member(*, user: User, slug: str, address: str | None = None) -> Access | None:
    """Look up a signed-in person's access to an organization; None without a membership."""
    suspended = KillSwitch.objects.filter(kind=KillSwitch.Kind.ORGANIZATION, target=OuterRef("org_id"))
    membership: Any = (
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


def as_member(access: Access, email: str) -> Access:
    """
    Return the access of another member in a browser, to predict what they may do. The caller's project stays.

    :raises NotPermitted: unless the caller also reads what belongs to other members
    :raises ScopeMissing: if the caller's token may not read
    :raises NotFound: if no member has the address
    """
    if email.casefold() == access.user.email.casefold():
        return access
    if not access.sees_everyone:
        raise NotPermitted
    scopes.require(scopes.READ, scopes=access.scopes, of_machine=access.host is not None)
    user = User.objects.filter(email__iexact=email, memberships__org=access.org).first()
    found = for_member(user=user, slug=access.org.slug) if user is not None else None
    if found is None:
        raise NotFound(pointer="/asMember")
    return replace(found, project=access.project)


def caller(request: Request) -> Access:
    """Return the caller of a view, after its permission has accepted the request."""
    access: object = request.auth
    assert isinstance(access, Access)
    return access
