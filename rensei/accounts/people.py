"""Accounts of people: operators make them, since there is no self-service sign-up."""

from allauth.account.models import EmailAddress
from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db.models import Q
from django.utils import timezone

from rensei.audit.record import record_person
from rensei.core import mails
from rensei.core.errors import AlreadyExists, FieldError
from rensei.core.secret import Secret
from rensei.core.transactions import assert_open, durable, unique
from rensei.orgs.models import Host, Org, User
from rensei.orgs.services import insert_org
from rensei.orgs.shapes import clean_email, clean_name
from rensei.tokens import tree
from rensei.tokens.models import ApiToken


def insert_person(*, email: str, password: Secret, name: str = "", operator: bool = False) -> User:
    """
    Create an account within the caller's transaction. An operator's also has access to the admin.

    :raises FieldError: if the address is invalid, or the password is too weak
    :raises AlreadyExists: if the address has an account
    """
    assert_open()
    email, name = clean_email(email), clean_name(name) if name else ""
    try:
        validate_password(password.reveal(), user=User(email=email, name=name))
    except ValidationError as fault:
        raise FieldError(pointer="/password", reason=" ".join(fault.messages)) from None
    with unique(AlreadyExists(what=f"An account for {email}")):
        return User.objects.create_user(email, password.reveal(), name=name, is_staff=operator, is_superuser=operator)


def create_org_with_owner(
    *, name: str, slug: str, owner_email: str, password: Secret | None = None
) -> tuple[User, Org]:
    """
    Create an organization, and its owner's account if there is none.

    :raises FieldError: if a new account needs a password and got none, or a value has the wrong form
    :raises AlreadyExists: if the slug is taken
    """
    email = clean_email(owner_email)
    with durable():
        owner = User.objects.filter(email=email).first()
        if owner is None:
            if password is None:
                raise FieldError(
                    pointer="/password", reason=f"{email} has no account yet. Give a password for the new one."
                )
            owner = insert_person(email=email, password=password)
        return owner, insert_org(name=name, slug=slug, owner=owner)


def update_person(user: User, *, name: str, is_mailed_decisions: bool, address: str | None) -> None:
    """
    Change a person's own name, and which mails they get.

    :raises FieldError: if the name has the wrong form
    """
    name = clean_name(name) if name.strip() else ""
    with durable():
        User.objects.filter(pk=user.pk).update(name=name, is_mailed_decisions=is_mailed_decisions)
        record_person(user, "person.updated", address=address, name=name, is_mailed_decisions=is_mailed_decisions)


def prove_address(user: User, *, address: str | None) -> None:
    """
    Record that a link reached a person's address for the first time.

    Until then, any holder of an invitation's link may have made the account: its tokens and machines are revoked.
    """
    with durable():
        if EmailAddress.objects.filter(user=user, email=user.email, verified=False).update(verified=True):
            record_person(user, "address.verified", address=address)
            end_programs(user)


def change_address(user: User, *, email: str, actor: str) -> None:
    """
    Change the address with which a person signs in, and mail the earlier one about it.

    The new one is verified by the first link that reaches it. The mail is sent first: a change of which the person
    could not be told is not made.

    :raises FieldError: if it is not an address
    :raises AlreadyExists: if it has an account
    :raises OSError: if the earlier address cannot be mailed
    """
    new, old = clean_email(email), user.email
    taken = AlreadyExists(what=f"An account for {new}")
    if User.objects.filter(email=new).exists():
        raise taken
    mails.send(
        "Rensei: the address of your account changes",
        f"An operator of {settings.PUBLIC_URL} changes the address of your account from {old} to {new}. If you did "
        "not ask for this, tell the operator and the owners of your organizations at once.\n",
        [old],
    )
    with durable():
        with unique(taken):
            User.objects.filter(pk=user.pk).update(email=new)
        # Links to reset the password go to every address that is stored here.
        EmailAddress.objects.filter(Q(user=user) | Q(email__iexact=new)).delete()
        EmailAddress.objects.create(user=user, email=new, primary=True, verified=False)
        record_person(user, "address.changed", address=None, actor=actor, old={"email": old}, new={"email": new})


def end_programs(user: User) -> None:
    """Revoke every token and machine of a person within the caller's transaction."""
    assert_open()
    now = timezone.now()
    tokens = ApiToken.objects.filter(membership__user=user)
    tree.revoke(tokens.values_list("pk", flat=True), now=now)
    Host.objects.filter(owner=user, revoked_at=None).update(revoked_at=now)
