"""Members' machines, each with its own token."""

from collections.abc import Collection

from django.utils import timezone

from rensei.audit.record import record
from rensei.core.errors import FieldError, NotPermitted
from rensei.core.secret import Secret
from rensei.core.transactions import assert_open, durable
from rensei.orgs import row_limits
from rensei.orgs.access import Access
from rensei.orgs.models import Host, OrgScopedQuerySet
from rensei.orgs.services import require_own
from rensei.orgs.shapes import clean_name
from rensei.tokens import tree
from rensei.tokens.models import ApiToken
from rensei.tokens.services import insert_token


def visible_hosts(access: Access) -> OrgScopedQuerySet[Host]:
    """List the machines that the caller may read: their own, or all for those who manage or audit."""
    hosts = Host.objects.for_org(access.org).select_related("owner")
    return hosts if access.sees_everyone else hosts.filter(owner=access.user)


def register_host(
    access: Access, *, name: str, login: str = Host.Login.NONE, scopes: Collection[str] | None = None
) -> tuple[Host, ApiToken, Secret]:
    """
    Register the caller's own machine, and make its own token.

    The token can execute runs and dispatch its own, unless `scopes` name more of what the caller may do.
    """
    with durable():
        return insert_host(access, name=name, login=login, scopes=scopes)


def insert_host(
    access: Access, *, name: str, login: str = Host.Login.NONE, scopes: Collection[str] | None = None
) -> tuple[Host, ApiToken, Secret]:
    """
    Register the caller's own machine within the caller's transaction.

    :raises LimitReached: if the member has as many machines, or tokens, as one may
    """
    assert_open()
    access.require_writer()
    access.require_whole_org()
    name = clean_name(name)
    if login not in Host.Login.values:
        raise FieldError(pointer="/login", reason=f"Choose one of {', '.join(Host.Login.values)}.")
    require_room(access)
    expires_at = access.token.expires_at if access.token else None
    host = Host.objects.create(org=access.org, owner=access.user, name=name, login=login)
    token, secret = insert_token(access, name=name, host=host, scopes=scopes, expires_at=expires_at)
    record(access, "host.registered", object_id=host.id, name=name, login=login, token=token.id, scopes=token.scopes)
    return host, token, secret


def require_room(access: Access) -> None:
    """:raises LimitReached: if the member has as many machines as one may"""
    own = Host.objects.for_org(access.org).filter(owner=access.user, revoked_at=None)
    row_limits.require_room(access.org, own, row_limits.MACHINES)


def update_host(access: Access, host: Host, *, name: str | None = None, login: str | None = None) -> Host:
    """Rename one's own machine, or record its kind of login. A machine's token does so for that machine only."""
    access.require_writer()
    require_own(access, host)
    if host.owner_id != access.user.pk or access.host not in {None, host}:
        raise NotPermitted
    if access.host is None:
        access.require_whole_org()
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


def require_revoke(access: Access, host: Host) -> None:
    """:raises NotPermitted: if the machine is another member's and the caller is bound, or uses a project's token"""
    require_own(access, host)
    if host.owner_id != access.user.pk:
        access.require_manager()
    access.require_whole_org()


def revoke_host(access: Access, host: Host) -> None:
    """Revoke a machine together with its tokens. Members revoke their own, owners and admins any."""
    require_revoke(access, host)
    now = timezone.now()
    with durable():
        revoked = Host.objects.filter(pk=host.pk, revoked_at=None).update(revoked_at=now)
        tree.revoke(ApiToken.objects.filter(host=host).values_list("pk", flat=True), now=now)
        if revoked:
            record(access, "host.revoked", object_id=host.id, name=host.name)
