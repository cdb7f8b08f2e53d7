"""Changes to an organization: projects and members."""

from collections.abc import Collection
from typing import Protocol

from django.conf import settings
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from rensei.audit.models import AuditEvent
from rensei.audit.record import record
from rensei.core.clock import database_now
from rensei.core.errors import AlreadyExists, FieldError, InUse, NotFound, NotPermitted
from rensei.core.periods import month_of, start_of
from rensei.core.transactions import assert_open, durable, unique
from rensei.orgs import locks, row_limits, signals
from rensei.orgs.access import Access, OwnersOnly
from rensei.orgs.models import (
    Host,
    Membership,
    MembershipQuerySet,
    Org,
    OrgScopedQuerySet,
    Project,
    Role,
    StoredBytes,
    User,
)
from rensei.orgs.shapes import clean_name, clean_slug

MARK_LENGTH = 2
CREATED = "org.created"


class OfOrg(Protocol):
    """Something that belongs to an organization."""

    org_id: str


# Organizations


def create_org(*, name: str, slug: str, owner: User, address: str | None = None) -> Org:
    """
    Create an organization with its first owner.

    :raises AlreadyExists: if the slug is taken
    :raises FieldError: if the name or the slug has the wrong form
    """
    with durable():
        return insert_org(name=name, slug=slug, owner=owner, address=address)


def insert_org(*, name: str, slug: str, owner: User, address: str | None = None) -> Org:
    """Create an organization within the caller's transaction, and notify the packages above within it too."""
    assert_open()
    name, slug = clean_name(name), clean_slug(slug)
    with unique(AlreadyExists(what=f"An organization with the slug '{slug}'")):
        org = Org.objects.create(name=name, slug=slug)
    StoredBytes.objects.create(org=org)
    membership = Membership.objects.create(org=org, user=owner, role=Role.OWNER)
    access = Access(user=owner, org=org, role=Role.OWNER, membership=membership, address=address)
    record(access, CREATED, object_id=org.id, name=name, slug=slug)
    signals.org_created.send(sender=Org, org=org)
    return org


def update_org(access: Access, *, name: str, mark: str) -> Org:
    """
    Change an organization's name and logo letter. An empty `mark` is the first letter of the name.

    :raises NotPermitted: unless the caller is an owner or admin
    :raises FieldError: if a value has the wrong form
    """
    access.require_org_manager()
    name = clean_name(name)
    mark = clean_name(mark, pointer="/mark", length=MARK_LENGTH) if mark.strip() else ""
    with durable():
        org = locks.lock(access.org.pk)
        org.name, org.mark = name, mark
        org.save(update_fields=["name", "mark"])
        record(access, "org.updated", object_id=org.id, name=name, mark=mark)
    return org


def may_create_org(user: User) -> bool:
    """
    Return whether a person may create an organization: an operator, or others up to the number that is set.

    Those that they made and that were deleted in this UTC month count like those that they own, because a new one has
    a new share of the month's free runs.
    """
    if user.is_staff:
        return True
    most: int = settings.RENSEI_ORGS_PER_PERSON
    owned = Membership.objects.filter(user=user, role=Role.OWNER).count()
    return owned < most and owned + _deleted_this_month(user) < most


def _deleted_this_month(user: User) -> int:
    month = start_of(month_of(database_now()))
    theirs = AuditEvent.objects.filter(org_id=OuterRef("pk"), action=CREATED, user_id=user.pk)
    return Org.objects.filter(Exists(theirs), deleting_at__gte=month).count()


def create_own_org(user: User, *, name: str, slug: str, address: str | None) -> Org:
    """
    Create an organization for a person who asks for it in the pages.

    :raises NotPermitted: if they own as many as one person may, with those that they made and deleted this month
    :raises AlreadyExists: if the slug is taken
    """
    with durable():
        # Two requests at once are counted one after the other.
        User.objects.select_for_update().get(pk=user.pk)
        if not may_create_org(user):
            raise NotPermitted
        return insert_org(name=name, slug=slug, owner=user, address=address)


# Projects


def visible_projects(access: Access) -> OrgScopedQuerySet[Project]:
    """List the projects that the caller may read: all, or only the one that the token is bound to."""
    projects = Project.objects.for_org(access.org)
    return projects.filter(pk=access.project.pk) if access.project else projects


def find_project(access: Access, slug: str) -> Project:
    """
    Find a project by its id.

    :raises NotFound: if the caller has no access to such a project
    """
    return visible_projects(access).get_or_404(slug=slug)


def create_project(access: Access, *, slug: str, name: str) -> Project:
    """
    Create a project. Its id is its slug, permanently.

    :raises AlreadyExists: if the organization has a project with that slug
    :raises LimitReached: if it has as many projects as it may
    """
    access.require_org_manager()
    name, slug = clean_name(name), clean_slug(slug, pointer="/id")
    with durable():
        row_limits.require_room(access.org, Project.objects.for_org(access.org), row_limits.PROJECTS)
        with unique(AlreadyExists(what=f"A project with the id '{slug}'")):
            project = Project.objects.create(org=access.org, slug=slug, name=name)
        record(access, "project.created", object_id=slug, name=name)
    return project


def update_project(access: Access, project: Project, *, name: str) -> Project:
    """Rename a project. Its id does not change, because programs use it."""
    access.require_manager()
    require_own(access, project)
    name = clean_name(name)
    with durable():
        record(access, "project.updated", object_id=project.slug, old={"name": project.name}, new={"name": name})
        project.name = name
        project.save(update_fields=["name"])
    return project


def delete_project(access: Access, project: Project) -> None:
    """Delete a project with its policy, profiles and tokens. Its runs and its ledger lines stay."""
    access.require_org_manager()
    require_own(access, project)
    with durable():
        record(access, "project.deleted", object_id=project.slug, name=project.name)
        project.delete()


# Members


def memberships_of(user: User) -> MembershipQuerySet:
    """List a person's own memberships, with their organizations."""
    return Membership.objects.live().filter(user=user).select_related("org")


def orgs_of(user: User) -> QuerySet[Org]:
    """List the organizations in which a person is a member."""
    return Org.objects.filter(memberships__in=memberships_of(user))


def people(ids: Collection[int]) -> QuerySet[User]:
    """List the accounts that an organization's own rows name. Their owners may have left it."""
    return User.objects.filter(pk__in=ids)


def members(access: Access) -> MembershipQuerySet:
    """List the people of the caller's organization."""
    return Membership.objects.for_org(access.org).select_related("user")


def change_role(access: Access, membership: Membership, *, role: str) -> Membership:
    """
    Give a member another role. Only owners make or unmake owners.

    :raises InUse: if it would leave the organization without an owner
    """
    access.require_org_manager()
    role = clean_role(role)
    with durable():
        membership = _locked_membership(access, membership)
        require_owner_for_owners(access, role, membership.role)
        if membership.role == Role.OWNER and role != Role.OWNER:
            _keep_an_owner(membership)
        record(
            access,
            "member.role_changed",
            object_id=membership.id,
            email=membership.user.email,
            old={"role": membership.role},
            new={"role": role},
        )
        membership.role = role
        membership.save(update_fields=["role"])
    return membership


def remove_member(access: Access, membership: Membership) -> None:
    """
    Remove a member with their tokens, and revoke their machines. Every member may leave.

    :raises InUse: if it is the last owner
    """
    if membership.pk != access.membership.pk:
        access.require_manager()
    access.require_whole_org()
    with durable():
        membership = _locked_membership(access, membership)
        if membership.pk != access.membership.pk:
            require_owner_for_owners(access, membership.role)
        if membership.role == Role.OWNER:
            _keep_an_owner(membership)
        revoke_machines_of(membership)
        record(
            access, "member.removed", object_id=membership.id, email=membership.user.email, role=str(membership.role)
        )
        membership.delete()


def is_last_owner(membership: Membership) -> bool:
    """Check whether an organization would have no owner without this one. Owners with an end do not count."""
    lasting = Membership.objects.filter(org_id=membership.org_id, role=Role.OWNER, ends_at=None)
    return list(lasting.values_list("pk", flat=True)[:2]) == [membership.pk]


def has_owner(org: Org) -> bool:
    """Check whether an organization has an owner without an end."""
    return Membership.objects.for_org(org).filter(role=Role.OWNER, ends_at=None).exists()


def left_without_owner(leaving: QuerySet[Membership]) -> list[Org]:
    """List the organizations, except deleted ones, whose last owners are among some memberships."""
    lasting = Membership.objects.filter(role=Role.OWNER, ends_at=None)
    theirs = Org.objects.filter(deleting_at=None, memberships__in=lasting.filter(pk__in=leaving.values("pk")))
    return list(theirs.exclude(memberships__in=lasting.exclude(pk__in=leaving.values("pk"))).distinct())


def revoke_machines_of(membership: Membership) -> None:
    """Revoke the machines of a member who leaves."""
    hosts = Host.objects.filter(org_id=membership.org_id, owner_id=membership.user_id, revoked_at=None)
    hosts.update(revoked_at=timezone.now())


# Rights


def clean_role(role: str) -> str:
    """:raises FieldError: if there is no such role"""
    if role not in Role.values:
        raise FieldError(pointer="/role", reason=f"Choose one of {', '.join(Role.values)}.")
    return role


def require_own(access: Access, thing: OfOrg) -> None:
    """:raises NotFound: if the object is another organization's"""
    if thing.org_id != access.org.pk:
        raise NotFound


def require_owner_for_owners(access: Access, *roles: str) -> None:
    """:raises OwnersOnly: if one of the roles is the owner's, and the caller is not an owner"""
    if Role.OWNER in roles and access.role != Role.OWNER:
        raise OwnersOnly


def _locked_membership(access: Access, membership: Membership) -> Membership:
    """Read a membership again with the organization locked, so that two owners cannot remove each other at once."""
    Org.objects.select_for_update().get(pk=access.org.pk)
    found: Membership = Membership.objects.for_org(access.org).select_related("user").get_or_404(pk=membership.pk)
    return found


def _keep_an_owner(leaving: Membership) -> None:
    if is_last_owner(leaving):
        raise InUse(what="The last owner", users="the organization, which needs one. Make another member owner")
