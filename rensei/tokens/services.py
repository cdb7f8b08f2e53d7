"""The API tokens of an organization: listing, creating and revoking them."""

import secrets
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from django.db.models import Q
from django.utils import timezone

from rensei.audit.record import record, record_operator
from rensei.core import networks
from rensei.core.errors import FieldError, NotFound, NotPermitted
from rensei.core.money import dollars
from rensei.core.secret import Secret, token_digest
from rensei.core.transactions import assert_open, durable
from rensei.orgs import row_limits
from rensei.orgs import scopes as token_scopes
from rensei.orgs.access import Access
from rensei.orgs.models import Host, OrgScopedQuerySet, Project, User
from rensei.orgs.services import require_own
from rensei.orgs.shapes import clean_name
from rensei.tokens import caps, tree
from rensei.tokens.look_up import TOKEN_PREFIX
from rensei.tokens.models import ApiToken

HINT_LENGTH = 4


def visible_tokens(access: Access) -> OrgScopedQuerySet[ApiToken]:
    """List the API tokens that the caller may read: their own, or all for those who manage or audit."""
    tokens = ApiToken.objects.for_org(access.org).select_related("membership__user", "project", "host", "made_by")
    return tokens if access.sees_everyone else tokens.filter(membership=access.membership)


def create_token(
    access: Access,
    *,
    name: str,
    project: Project | None = None,
    host: Host | None = None,
    scopes: Collection[str] | None = None,
    allowed_networks: Sequence[str] = (),
    expires_at: datetime | None = None,
    cap: int | None = None,
) -> tuple[ApiToken, Secret]:
    """
    Create a token for the caller, never for another member. The secret can be read only now.

    A token made with a token gives no more access than that one, in scopes, networks, project, machine and time, and
    ends with it. Without `scopes` it gets the default ones. `cap` is the most that its runs may cost in a month, in
    picodollars; the caps of the token that makes it hold for it too.

    :raises FieldError: if the expiry has passed, or a scope or network is not one that the caller may give
    :raises NotPermitted: if the new token would give more access than the caller's own, or the caller reads for a time
    """
    if access.membership.ends_at is not None and not access.writes:
        # An operator who views an organization leaves nothing in it. Auditors who stay make tokens to read with.
        raise NotPermitted
    name = clean_name(name)
    if expires_at is not None and expires_at <= timezone.now():
        raise FieldError(pointer="/expiresAt", reason="The expiry has already passed. Choose a moment in the future.")
    if access.token is not None:
        project, host = project or access.project, host or access.host
        expires_at = expires_at or access.token.expires_at
    _require_no_wider(access, project, host, expires_at)
    with durable():
        token, secret = insert_token(
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
            cap=dollars(cap),
        )
        if cap is not None:
            caps.begin(token, picodollars=cap)
    return token, secret


def update_token(access: Access, token: ApiToken, *, cap: int | None) -> ApiToken:
    """
    Set, change or remove a token's cap, in picodollars. Members change that of their own, owners and admins any.

    :raises NotPermitted: if the caller may not
    :raises CapOfCaller: if the cap would hold for the caller's own token
    """
    require_change(access, token)
    with durable():
        before = caps.change(token, picodollars=cap, caller_id=access.token.id if access.token else "")
        record(
            access,
            "token.cap_changed",
            object_id=token.id,
            name=token.name,
            old={"cap": dollars(before)},
            new={"cap": dollars(cap)},
        )
    token.refresh_from_db(fields=["caps"])
    return token


def revoke_token(access: Access, token: ApiToken) -> None:
    """Revoke a token with all that was made with it. Members revoke their own, owners and admins any."""
    require_change(access, token)
    with durable():
        ended = tree.revoke([token.pk], now=timezone.now())
        if token.pk in ended:
            made = [token_id for token_id in ended if token_id != token.pk]
            record(access, "token.revoked", object_id=token.id, name=token.name, made=made)


def revoke_tokens(tokens: Iterable[ApiToken], *, operator: User) -> int:
    """Revoke tokens of any organization with all that was made with them, and count those that were still valid."""
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


def insert_token(
    access: Access,
    *,
    name: str,
    project: Project | None = None,
    host: Host | None = None,
    scopes: Collection[str] | None,
    allowed_networks: Sequence[str] = (),
    expires_at: datetime | None,
) -> tuple[ApiToken, Secret]:
    """
    Create a token within the caller's transaction.

    :raises LimitReached: if the member has as many valid tokens as one may
    """
    assert_open()
    # The organization is locked before the maker, as in `rensei.orgs.row_limits`.
    own = ApiToken.objects.for_org(access.org).filter(membership=access.membership, revoked_at=None)
    valid = own.filter(Q(expires_at=None) | Q(expires_at__gt=timezone.now()))
    row_limits.require_room(access.org, valid, row_limits.TOKENS)
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
        caps=maker.caps if maker else [],
        generation=tree.next_generation(maker),
        expires_at=expires_at,
    )
    return token, Secret(plain)


def require_change(access: Access, token: ApiToken) -> None:
    """:raises NotPermitted: if the token is another member's or not of the caller's project, and the caller is bound"""
    require_own(access, token)
    if token.membership_id != access.membership.pk:
        access.require_manager()
    if access.project is None or token.project_id != access.project.pk:
        access.require_whole_org()


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
