"""What people change about their organization: projects, members, tokens and machines."""

import secrets
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from rensei.core import networks
from rensei.core.errors import AlreadyExists, FieldError, InUse, NotFound, NotPermitted
from rensei.core.secret import Secret
from rensei.core.transactions import assert_open, durable
from rensei.orgs import scopes as token_scopes
from rensei.orgs import signals
from rensei.orgs.access import TOKEN_PREFIX, Access, record, record_operator, token_digest
from rensei.orgs.models import ApiToken, Host, Membership, Org, Project, Role, StoredBytes, User
from rensei.orgs.shapes import clean_name, clean_slug
from rensei.tokens import tree

HINT_LENGTH = 4


# Organizations


def create_org(*, name: str, slug: str, owner: User, address: str | None = None) -> Org:
    """
    Create an organization with its first owner.

    :raises AlreadyExists: if the slug is taken
    :raises FieldError: if the name or the slug has the wrong shape
    """
    with durable():
        return insert_org(name=name, slug=slug, owner=owner, address=address)


def insert_org(*, name: str, slug: str, owner: User, address: str | None = None) -> Org:
    """Create an organization within the caller's transaction, and tell the rooms above within it too."""
    assert_open()
    name, slug = clean_name(name), clean_slug(slug)
    try:
        with transaction.atomic():
            org = Org.objects.create(name=name, slug=slug)
    except IntegrityError as fault:
        raise AlreadyExists(what=f"An organization with the slug '{slug}'") from fault
    StoredBytes.objects.create(org=org)
    membership = Membership.objects.create(org=org, user=owner, role=Role.OWNER)
    access = Access(user=owner, org=org, role=Role.OWNER, membership=membership, address=address)
    record(access, "org.created", object_id=org.id, name=name, slug=slug)
    signals.org_created.send(sender=Org, org=org)
    return org


# Projects


def visible_projects(access: Access) -> QuerySet[Project]:
    """List the projects that the caller may see: all, or only the one that the token is bound to."""
    projects: QuerySet[Project] = Project.objects.for_org(access.org)
    return projects.filter(pk=access.project.pk) if access.project else projects


def visible_tokens(access: Access) -> QuerySet[ApiToken]:
    """List the API tokens that the caller may see: their own, or everyone's for those who manage or audit."""
    tokens: QuerySet[ApiToken] = ApiToken.objects.for_org(access.org)
    tokens = tokens.select_related("membership__user", "project", "host", "made_by")
    return tokens if access.sees_everyone else tokens.filter(membership=access.membership)


def visible_hosts(access: Access) -> QuerySet[Host]:
    """List the machines that the caller may see: their own, or everyone's for those who manage or audit."""
    hosts: QuerySet[Host] = Host.objects.for_org(access.org).select_related("owner")
    return hosts if access.sees_everyone else hosts.filter(owner=access.user)


def find_project(access: Access, slug: str) -> Project:
    """
    Find a project by its id.

    :raises NotFound: if the caller sees no such project
    """
    project = visible_projects(access).filter(slug=slug).first()
    if project is None:
        raise NotFound
    return project


def create_project(access: Access, *, slug: str, name: str) -> Project:
    """
    Create a project. Its id is its slug, for good.

    :raises AlreadyExists: if the organization has a project with that slug
    """
    access.require_manager()
    require_whole_org(access)
    name, slug = clean_name(name), clean_slug(slug, pointer="/id")
    with durable():
        try:
            with transaction.atomic():
                project = Project.objects.create(org=access.org, slug=slug, name=name)
        except IntegrityError as fault:
            raise AlreadyExists(what=f"A project with the id '{slug}'") from fault
        record(access, "project.created", object_id=slug, name=name)
    return project


def update_project(access: Access, project: Project, *, name: str) -> Project:
    """Rename a project. Its id stays, because programs know it."""
    access.require_manager()
    _require_own(access, project)
    name = clean_name(name)
    with durable():
        record(access, "project.updated", object_id=project.slug, old={"name": project.name}, new={"name": name})
        project.name = name
        project.save(update_fields=["name"])
    return project


def delete_project(access: Access, project: Project) -> None:
    """Delete a project with its policy, profiles and tokens. Its runs and its ledger lines stay."""
    access.require_manager()
    require_whole_org(access)
    _require_own(access, project)
    with durable():
        record(access, "project.deleted", object_id=project.slug, name=project.name)
        project.delete()


# Members


def change_role(access: Access, membership: Membership, *, role: str) -> Membership:
    """
    Give a member another role. Only owners make or unmake owners.

    :raises InUse: if it would leave the organization without an owner
    """
    access.require_manager()
    require_whole_org(access)
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
    Remove a member with their tokens, and shut their machines out. Everyone may leave by themselves.

    :raises InUse: if it is the last owner
    """
    if membership.pk != access.membership.pk:
        access.require_manager()
    require_whole_org(access)
    with durable():
        membership = _locked_membership(access, membership)
        if membership.pk != access.membership.pk:
            require_owner_for_owners(access, membership.role)
        if membership.role == Role.OWNER:
            _keep_an_owner(membership)
        shut_machines_out(membership)
        record(
            access, "member.removed", object_id=membership.id, email=membership.user.email, role=str(membership.role)
        )
        membership.delete()


def is_last_owner(membership: Membership) -> bool:
    """Tell whether an organization would have no owner without this one. Those whose access ends do not count."""
    lasting = Membership.objects.filter(org_id=membership.org_id, role=Role.OWNER, ends_at=None)
    return list(lasting.values_list("pk", flat=True)[:2]) == [membership.pk]


def shut_machines_out(membership: Membership) -> None:
    """Revoke the machines of a member who goes."""
    hosts = Host.objects.filter(org_id=membership.org_id, owner_id=membership.user_id, revoked_at=None)
    hosts.update(revoked_at=timezone.now())


# Tokens


def create_token(
    access: Access,
    *,
    name: str,
    project: Project | None = None,
    host: Host | None = None,
    scopes: Collection[str] | None = None,
    allowed_networks: Sequence[str] = (),
    expires_at: datetime | None = None,
) -> tuple[ApiToken, Secret]:
    """
    Create a token for the caller, never for another member. The secret can be read only now.

    A token made with a token opens no more than that one, in scopes, networks, project, machine and time, and ends
    with it. Without `scopes` it gets the usual ones.

    :raises FieldError: if the expiry has passed, or a scope or network is not one that the caller may give
    :raises NotPermitted: if the new token would open more than the caller's own
    """
    name = clean_name(name)
    if expires_at is not None and expires_at <= timezone.now():
        raise FieldError(pointer="/expiresAt", reason="The expiry has already passed. Choose a moment in the future.")
    if access.token is not None:
        project, host = project or access.project, host or access.host
        expires_at = expires_at or access.token.expires_at
    _require_no_wider(access, project, host, expires_at)
    with durable():
        token, secret = _new_token(
            access,
            name=name,
            project=project,
            host=host,
            scopes=scopes,
            allowed_networks=allowed_networks,
            expires_at=expires_at,
        )
        record(
            access,
            "token.created",
            object_id=token.id,
            name=name,
            project=project.slug if project else None,
            host=host.id if host else None,
            scopes=token.scopes,
            networks=token.allowed_networks,
            expires=expires_at.isoformat() if expires_at else None,
        )
    return token, secret


def revoke_token(access: Access, token: ApiToken) -> None:
    """Revoke a token with all that was made with it. Members revoke their own, owners and admins everyone's."""
    _require_own(access, token)
    if token.membership_id != access.membership.pk:
        access.require_manager()
    if access.project is None or token.project_id != access.project.pk:
        require_whole_org(access)
    with durable():
        ended = tree.revoke([token.pk], now=timezone.now())
        if token.pk in ended:
            made = [token_id for token_id in ended if token_id != token.pk]
            record(access, "token.revoked", object_id=token.id, name=token.name, made=made)


def revoke_tokens(tokens: Iterable[ApiToken], *, operator: User) -> int:
    """Revoke tokens of any organization with all that was made with them, and tell how many were still open."""
    count = 0
    with durable():
        for token in tokens:
            ended = tree.revoke([token.pk], now=timezone.now())
            count += len(ended)
            if token.pk in ended:
                made = [token_id for token_id in ended if token_id != token.pk]
                record_operator(
                    operator, "token.revoked", object_id=token.id, org=token.org, name=token.name, made=made
                )
    return count


# Machines


def register_host(
    access: Access, *, name: str, login: str = Host.Login.NONE, scopes: Collection[str] | None = None
) -> tuple[Host, ApiToken, Secret]:
    """
    Register the caller's own machine, and make the token that only it uses.

    It carries out runs and dispatches its own, unless `scopes` name more of what the caller may do.
    """
    with durable():
        return insert_host(access, name=name, login=login, scopes=scopes)


def insert_host(
    access: Access, *, name: str, login: str = Host.Login.NONE, scopes: Collection[str] | None = None
) -> tuple[Host, ApiToken, Secret]:
    """Register the caller's own machine within the caller's transaction."""
    assert_open()
    access.require_writer()
    require_whole_org(access)
    name = clean_name(name)
    if login not in Host.Login.values:
        raise FieldError(pointer="/login", reason=f"Choose one of {', '.join(Host.Login.values)}.")
    expires_at = access.token.expires_at if access.token else None
    host = Host.objects.create(org=access.org, owner=access.user, name=name, login=login)
    token, secret = _new_token(access, name=name, host=host, scopes=scopes, expires_at=expires_at)
    record(access, "host.registered", object_id=host.id, name=name, login=login, token=token.id, scopes=token.scopes)
    return host, token, secret


def update_host(access: Access, host: Host, *, name: str | None = None, login: str | None = None) -> Host:
    """Rename one's own machine, or note which login it holds. A machine's token does so for that machine only."""
    access.require_writer()
    _require_own(access, host)
    if host.owner_id != access.user.pk or access.host not in {None, host}:
        raise NotPermitted
    if access.host is None:
        require_whole_org(access)
    if login is not None and login not in Host.Login.values:
        raise FieldError(pointer="/login", reason=f"Choose one of {', '.join(Host.Login.values)}.")
    with durable():
        old = {"name": host.name, "login": host.login}
        host.name = clean_name(name) if name is not None else host.name
        host.login = login if login is not None else host.login
        host.save(update_fields=["name", "login"])
        new = {"name": host.name, "login": host.login}
        record(access, "host.updated", object_id=host.id, old=old, new=new)
    return host


def revoke_host(access: Access, host: Host) -> None:
    """Shut a machine out together with its tokens. Members revoke their own, owners and admins everyone's."""
    _require_own(access, host)
    if host.owner_id != access.user.pk:
        access.require_manager()
    require_whole_org(access)
    now = timezone.now()
    with durable():
        revoked = Host.objects.filter(pk=host.pk, revoked_at=None).update(revoked_at=now)
        tree.revoke(ApiToken.objects.filter(host=host).values_list("pk", flat=True), now=now)
        if revoked:
            record(access, "host.revoked", object_id=host.id, name=host.name)


# Rights


def clean_role(role: str) -> str:
    """:raises FieldError: if there is no such role"""
    if role not in Role.values:
        raise FieldError(pointer="/role", reason=f"Choose one of {', '.join(Role.values)}.")
    return role


def _require_own(access: Access, thing: Project | ApiToken | Host) -> None:
    if thing.org_id != access.org.pk:
        raise NotFound


def require_whole_org(access: Access) -> None:
    """A token of one project changes nothing of the organization around it."""
    if access.project is not None:
        raise NotPermitted


def require_owner_for_owners(access: Access, *roles: str) -> None:
    """:raises NotPermitted: if one of the roles is the owner's, and the caller is none"""
    if Role.OWNER in roles and access.role != Role.OWNER:
        raise NotPermitted


def _require_no_wider(access: Access, project: Project | None, host: Host | None, expires_at: datetime | None) -> None:
    if (project and project.org_id != access.org.pk) or (host and host.org_id != access.org.pk):
        raise NotFound
    if host and host.owner_id != access.user.pk:
        raise NotPermitted
    if access.project and project != access.project:
        raise NotPermitted
    if access.host and host != access.host:
        raise NotPermitted
    limit = access.token.expires_at if access.token else None
    if limit and (expires_at is None or expires_at > limit):
        raise NotPermitted


def _locked_membership(access: Access, membership: Membership) -> Membership:
    """Read a membership again with the organization locked, so that two owners cannot remove each other at once."""
    Org.objects.select_for_update().get(pk=access.org.pk)
    found: Membership | None = (
        Membership.objects.for_org(access.org).select_related("user").filter(pk=membership.pk).first()
    )
    if found is None:
        raise NotFound
    return found


def _keep_an_owner(leaving: Membership) -> None:
    if is_last_owner(leaving):
        raise InUse(what="The last owner", users="the organization, which needs one. Make another member owner")


def _new_token(
    access: Access,
    *,
    name: str,
    project: Project | None = None,
    host: Host | None = None,
    scopes: Collection[str] | None,
    allowed_networks: Sequence[str] = (),
    expires_at: datetime | None,
) -> tuple[ApiToken, Secret]:
    maker = tree.lock_maker(access)
    plain = TOKEN_PREFIX + secrets.token_hex(32)
    token = ApiToken.objects.create(
        org=access.org,
        membership=access.membership,
        project=project,
        host=host,
        name=name,
        digest=token_digest(plain),
        hint=plain[-HINT_LENGTH:],
        scopes=token_scopes.clean(scopes, maker=maker.scopes if maker else None, of_machine=host is not None),
        allowed_networks=networks.clean(allowed_networks, maker=maker.allowed_networks if maker else ()),
        made_by=maker,
        generation=tree.next_generation(maker),
        expires_at=expires_at,
    )
    return token, Secret(plain)
