"""Invitations to an organization: a link, mailed to an address, that works once and for seven days."""

import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from allauth.account.models import EmailAddress
from django.conf import settings
from django.db.models import Case, Exists, OuterRef, When
from django.template.loader import render_to_string

from rensei.accounts.models import Invitation
from rensei.accounts.people import insert_person
from rensei.audit.record import record
from rensei.core import mails
from rensei.core.clock import database_now
from rensei.core.errors import NotFound, NotPermitted, RenseiError, Said
from rensei.core.limits import limit
from rensei.core.rates import rates
from rensei.core.secret import Secret, token_digest
from rensei.core.transactions import assert_open, durable, unique
from rensei.orgs import kill_switches
from rensei.orgs.access import Access
from rensei.orgs.models import MANAGERS, Membership, Org, OrgScopedQuerySet, Role, User
from rensei.orgs.services import clean_role, require_owner_for_owners
from rensei.orgs.shapes import clean_email
from rensei.tokens import tree

LIFETIME = timedelta(days=7)
MAILS_MAX = limit(
    100,
    "mails in an hour",
    what="Invitations that an organization sends, by all who may invite",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`",
)
MAILS_SECONDS = 3600
# These write mail to the terminal or discard it, so no recipient would get a link.
UNDELIVERED = {"django.core.mail.backends.console.EmailBackend", "django.core.mail.backends.dummy.EmailBackend"}

logger = structlog.get_logger()


class InvitationInvalid(RenseiError):
    """The link does not work, or no longer. The sentence gives the reason."""

    code = "INVITATION_NOT_VALID"
    status = 410
    title = "Invitation not valid"
    message = Said("{reason}", "{step}")

    def __init__(self, *, reason: str, step: str = "Ask an owner or admin of the organization for a new one.") -> None:
        super().__init__(reason=reason, step=step)


class AlreadyMember(RenseiError):
    """The person who is invited, or accepts, is already a member."""

    code = "ALREADY_EXISTS"
    status = 409
    title = "Already a member"
    message = Said("{email} is a member already.", "A role is changed in the list of members.")


class AlreadyInvited(RenseiError):
    """An invitation for that address is open."""

    code = "ALREADY_EXISTS"
    status = 409
    title = "Already invited"
    message = Said("An invitation to {email} is open already.", "Send it again from the list, or take it back first.")


class OtherPerson(RenseiError):
    """The signed-in person opened a link for another address."""

    code = "INVITATION_FOR_SOMEBODY_ELSE"
    status = 403
    title = "Invitation for another person"
    message = Said(
        "This invitation is for {invited}, and you are signed in as {email}.", "Sign out, and open the link again."
    )


@dataclass(frozen=True, kw_only=True)
class Sent:
    """
    A new invitation. `invitation.mailed` is whether its link was mailed.

    `link` is set only if the server sends no mail at all: then the inviter passes it on, and it can be read only
    now. If mail is sent, no link is shown elsewhere, as it proves control of the address.
    """

    invitation: Invitation
    link: Secret | None


def invite(access: Access, *, email: str, role: str) -> Sent:
    """
    Invite an address, and mail it the link.

    :raises FieldError: if the address is invalid, or there is no such role
    :raises NotPermitted: if the caller may not give that role
    :raises AlreadyMember: if a member has that address
    :raises AlreadyInvited: if an invitation to it is open
    :raises OrgSuspended: if operators have suspended the organization
    :raises RateLimited: if the organization has sent too many invitations
    """
    _require_inviter(access, role)
    email = clean_email(email)
    if Membership.objects.for_org(access.org).filter(user__email=email).exists():
        raise AlreadyMember(email=email)
    if _open(access.org).filter(email=email, expires_at__gt=database_now()).exists():
        raise AlreadyInvited(email=email)
    _spend_mail(access.org)
    now, plain = database_now(), _new_secret()
    with durable():
        # An expired invitation is revoked to permit a new one. An open one is sent again by its own button.
        _open(access.org).filter(email=email, expires_at__lte=now).update(revoked_at=now)
        with unique(AlreadyInvited(email=email)):
            invitation = Invitation.objects.create(
                org=access.org,
                email=email,
                role=role,
                invited_by=access.user,
                made_by=tree.lock_maker(access),
                created_at=now,
                **_terms(plain, now),
            )
        record(access, "invitation.created", object_id=invitation.id, email=email, role=role)
    return _send(access, invitation, plain)


def resend(access: Access, invitation: Invitation) -> Sent:
    """
    Mail a new link for another seven days, which ends the earlier one. Its sender becomes the inviter.

    :raises NotFound: if the invitation was accepted or revoked meanwhile
    :raises OrgSuspended: if operators have suspended the organization
    :raises RateLimited: if the organization has sent too many invitations
    """
    _require_inviter(access, invitation.role)
    _spend_mail(access.org)
    now, plain = database_now(), _new_secret()
    with durable():
        terms = _terms(plain, now)
        if (
            not _open(access.org)
            .filter(pk=invitation.pk)
            .update(invited_by=access.user, made_by=tree.lock_maker(access), mailed=False, **terms)
        ):
            raise NotFound
        invitation.refresh_from_db()
        record(access, "invitation.resent", object_id=invitation.id, email=invitation.email, role=invitation.role)
    return _send(access, invitation, plain)


def revoke(access: Access, invitation: Invitation) -> None:
    """
    Revoke an invitation. Its link stops working immediately.

    :raises NotFound: if it was accepted or revoked meanwhile
    """
    access.require_org_manager()
    with durable():
        if not _open(access.org).filter(pk=invitation.pk).update(revoked_at=database_now()):
            raise NotFound
        record(access, "invitation.revoked", object_id=invitation.id, email=invitation.email, role=invitation.role)


def end_invitations_of(*, token_ids: list[str], now: datetime, **_signal: object) -> None:
    """Revoke the open invitations that were made with tokens, in the transaction that revokes those."""
    assert_open()
    Invitation.objects.filter(made_by__in=token_ids, accepted_at=None, revoked_at=None).update(revoked_at=now)


def open_invitations(access: Access) -> OrgScopedQuerySet[Any]:
    """List the open invitations, each with whether its inviter could still make it."""
    return _vouched(_open(access.org)).select_related("invited_by")


def are_mailed() -> bool:
    """Check whether this server delivers mail at all, or writes it to its terminal."""
    return settings.EMAIL_BACKEND not in UNDELIVERED


def find(*, digest: str) -> Invitation:
    """
    Find the invitation of a link, by the hash of the link's secret.

    :raises InvitationInvalid: if it cannot be accepted, with the reason
    """
    found: Any = _vouched(Invitation.objects.filter(digest=digest)).select_related("org", "invited_by").first()
    if found is None:
        raise InvitationInvalid(reason="This link is unknown, or a newer one was sent since.")
    if found.accepted_at is not None:
        raise InvitationInvalid(reason="This invitation was used already. Sign in to get to the organization.")
    if found.revoked_at is not None or not found.vouched:
        raise InvitationInvalid(reason="This invitation was revoked.")
    if found.expires_at <= database_now():
        raise InvitationInvalid(reason="This invitation has expired: it was good for seven days.")
    if not found.mailed and are_mailed():
        raise InvitationInvalid(reason="This link never went to the invited address by mail.")
    _require_running(found.org)
    invitation: Invitation = found
    return invitation


def accepted_org(digest: str, *, user: User) -> Org | None:
    """Return the organization that a person has joined by a link, for people who open it again."""
    return Org.objects.filter(invitations__digest=digest, invitations__accepted_by=user, memberships__user=user).first()


def accept(invitation: Invitation, *, user: User, address: str | None) -> Membership:
    """
    Make a signed-in person a member by their invitation.

    :raises OtherPerson: if it is for another address
    :raises AlreadyMember: if they are in the organization already
    :raises InvitationInvalid: if it was accepted or revoked meanwhile
    """
    if user.email != invitation.email:
        raise OtherPerson(invited=invitation.email, email=user.email)
    with durable():
        membership = _join(invitation, user, address)
        if invitation.mailed:
            # A person with the link reads the mail of the address, and has signed in to its account.
            EmailAddress.objects.filter(user=user, email=user.email).update(verified=True)
    return membership


def accept_with_new_account(invitation: Invitation, *, name: str, password: Secret, address: str | None) -> User:
    """
    Create the account of a new person, and make them a member by their invitation.

    :raises FieldError: if the name is invalid, or the password is too weak
    :raises AlreadyExists: if the address has an account, which then has to sign in
    :raises InvitationInvalid: if it was accepted or revoked meanwhile
    """
    with durable():
        user = insert_person(email=invitation.email, password=password, name=name)
        # The new account is the only one with this address. It is verified only by a link that was mailed there.
        EmailAddress.objects.filter(email__iexact=user.email).delete()
        EmailAddress.objects.create(user=user, email=user.email, primary=True, verified=invitation.mailed)
        _join(invitation, user, address)
    return user


def accept_all(user: User, *, address: str | None) -> None:
    """Accept every open and valid invitation of a person whose address was verified."""
    now = database_now()
    kept = _vouched(Invitation.objects.filter(email=user.email, accepted_at=None, revoked_at=None))
    for invitation in kept.filter(expires_at__gt=now, vouched=True).select_related("org"):
        with suppress(InvitationInvalid, AlreadyMember), durable():
            _join(invitation, user, address)


def is_expected(email: str) -> bool:
    """Check whether an address has an open invitation."""
    kept = _vouched(Invitation.objects.filter(email=email, accepted_at=None, revoked_at=None))
    return kept.filter(expires_at__gt=database_now(), vouched=True).exists()


def _join(invitation: Invitation, user: User, address: str | None) -> Membership:
    assert_open()
    # A removal or a change of a role locks this row, so the inviter's right is read again after it has ended.
    Org.objects.select_for_update(no_key=True).get(pk=invitation.org_id)
    _require_running(invitation.org)
    # The update decides which of two simultaneous answers counts.
    waiting = Invitation.objects.filter(
        pk=invitation.pk, digest=invitation.digest, accepted_at=None, revoked_at=None, expires_at__gt=database_now()
    )
    if not _vouched(waiting).filter(vouched=True).update(accepted_at=database_now(), accepted_by=user):
        raise InvitationInvalid(reason="This invitation was answered in the meantime.")
    with unique(AlreadyMember(email=user.email)):
        membership = Membership.objects.create(org=invitation.org, user=user, role=invitation.role)
    access = Access(user=user, org=invitation.org, role=Role(invitation.role), membership=membership, address=address)
    inviter = invitation.invited_by.email if invitation.invited_by else None
    record(access, "invitation.accepted", object_id=invitation.id, member=membership.id, invited_by=inviter)
    return membership


def _require_inviter(access: Access, role: str) -> None:
    """:raises NotPermitted: also for an operator with temporary access, who must not add permanent members"""
    access.require_org_manager()
    require_owner_for_owners(access, clean_role(role))
    if access.membership.ends_at is not None:
        raise NotPermitted
    kill_switches.require_not_suspended(access.org)


def _require_running(org: Org) -> None:
    """:raises InvitationInvalid: if operators have suspended the organization; only its members get the reason"""
    if kill_switches.suspension_of(org) is not None:
        raise InvitationInvalid(
            reason="The organization is suspended, and takes in no members.",
            step="Open the link again when its operator has resumed it.",
        )


def _spend_mail(org: Org) -> None:
    """:raises RateLimited: if the organization has sent as many invitations as allowed within an hour"""
    window = rates.count_exactly(f"invitations:{org.pk}", seconds=MAILS_SECONDS)
    if window.total > MAILS_MAX:
        raise rates.refusal(window.ends_at)


def _open(org: Org) -> OrgScopedQuerySet[Invitation]:
    return Invitation.objects.for_org(org).filter(accepted_at=None, revoked_at=None)


def _vouched(invitations: OrgScopedQuerySet[Invitation]) -> OrgScopedQuerySet[Any]:
    """
    Annotate each invitation with whether its inviter could still make it.

    A person who may no longer invite must not add members by an earlier link.
    """
    inviters = Membership.objects.filter(
        org=OuterRef("org"), user=OuterRef("invited_by"), user__is_active=True, ends_at=None
    )
    by_owner = Exists(inviters.filter(role=Role.OWNER))
    by_manager = Exists(inviters.filter(role__in=MANAGERS))
    vouched = Case(When(role=Role.OWNER, then=by_owner), default=by_manager)
    return invitations.annotate(vouched=vouched)


def _new_secret() -> Secret:
    return Secret(secrets.token_urlsafe(32))


def _terms(plain: Secret, now: datetime) -> dict[str, object]:
    return {"digest": token_digest(plain.reveal()), "expires_at": now + LIFETIME}


def _send(access: Access, invitation: Invitation, plain: Secret) -> Sent:
    """
    Mail the link after the transaction. The inviter gets it only if this server sends no mail.

    A failed mail is sent again from the list. If its link were shown, the inviter could claim the address with it.
    """
    link = f"{settings.PUBLIC_URL}/invitations/{plain.reveal()}"
    body = render_to_string("orgs/mail/invitation.txt", {"invitation": invitation, "access": access, "link": link})
    try:
        mails.send(
            f"{access.user.get_full_name()} invites you to {access.org.name} on Rensei", body, [invitation.email]
        )
    except OSError as fault:
        # A mail server's answer may repeat what it was sent, so only the kind of fault is logged.
        logger.warning("invitation_not_mailed", invitation_id=invitation.id, fault=type(fault).__name__)
        return Sent(invitation=invitation, link=None)
    if not are_mailed():
        return Sent(invitation=invitation, link=Secret(link))
    invitation.mailed = True
    invitation.save(update_fields=["mailed"])
    return Sent(invitation=invitation, link=None)
