"""Writing to the audit log, always in the transaction of the change itself."""

from typing import Protocol

from rensei.audit.models import AuditEvent, Organization


class Person(Protocol):
    """A person with an account."""

    pk: int
    email: str


class Token(Protocol):
    """An API token."""

    id: str


class Caller(Protocol):
    """Who requested a change: a person in an organization, possibly by a token, from an address."""

    @property
    def user(self) -> Person: ...
    @property
    def org(self) -> Organization: ...
    @property
    def token(self) -> Token | None: ...
    @property
    def address(self) -> str | None: ...


def record(access: Caller, action: str, *, object_id: str, **detail: object) -> AuditEvent:
    """Record an action of a caller."""
    return AuditEvent.objects.create(
        org_id=access.org.pk,
        user_id=access.user.pk,
        actor=access.user.email,
        token_id=access.token.id if access.token else "",
        action=action,
        object_id=object_id,
        detail=detail,
        address=access.address,
    )


def record_operator(
    operator: Person,
    action: str,
    *,
    object_id: str,
    org: Organization | None = None,
    address: str | None = None,
    **detail: object,
) -> AuditEvent:
    """Record an action of an operator."""
    return AuditEvent.objects.create(
        org_id=org.pk if org else None,
        user_id=operator.pk,
        actor=operator.email,
        action=action,
        object_id=object_id,
        detail=detail,
        address=address,
    )


def record_person(
    user: Person, action: str, *, address: str | None, actor: str | None = None, **detail: object
) -> AuditEvent:
    """Record an event of a person's own account, which belongs to no organization."""
    return AuditEvent.objects.create(
        user_id=user.pk,
        actor=actor or user.email,
        action=action,
        object_id=str(user.pk),
        detail=detail,
        address=address,
    )


def record_system(
    actor: str,
    action: str,
    *,
    object_id: str,
    org_id: str | None = None,
    user_id: int | None = None,
    **detail: object,
) -> AuditEvent:
    """Record what Rensei did by itself. `user_id` is the person whose run it was done for, if any."""
    return AuditEvent.objects.create(
        org_id=org_id, user_id=user_id, actor=actor, action=action, object_id=object_id, detail=detail
    )
