"""
What one operator alone may not do: export a stored key, and change where keys without a base URL are sent.

One operator asks with a reason, another one approves within a day, and it is done once. Each step is in the audit log,
and the owners concerned get a mail. An installation with one operator says so by a setting: the same person approves.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from urllib.parse import urlsplit

from django.conf import settings
from django.db.models import Q

from integrations.keys import credentials, default_address, platform
from integrations.models import BreakGlass, DefaultAddress, Integration, PlatformKey
from integrations.providers.base import ADAPTERS, Credential
from integrations.vault.openings import Reason, Why
from rensei.audit.record import record_operator, record_system
from rensei.core import mails
from rensei.core.clock import database_now
from rensei.core.errors import FieldError, NotFound, RenseiError, Said
from rensei.core.later import later
from rensei.core.limits import limit
from rensei.core.networks import LOOPBACK
from rensei.core.secret import Secret
from rensei.core.transactions import durable
from rensei.orgs.models import Membership, Role, User

Kind = BreakGlass.Kind
APPROVED_WITHIN = timedelta(
    hours=limit(
        24,
        "h",
        what="Time in which a second operator may approve a break-glass request",
        told="operators: the page says that it is over, and they ask again",
    )
)
USED_WITHIN = timedelta(
    hours=limit(
        1,
        "h",
        what="Time in which an approved export of a key may be carried out, once",
        told="operators: the command refuses, and they ask again",
    )
)
REASON_LENGTH = 500
WAITING = "waiting for its approval"


class SecondOperatorNeeded(RenseiError):
    """The operator who asked may not approve."""

    code = "NOT_PERMITTED"
    status = 403
    title = "A second operator is needed"
    message = Said(
        "You asked for this yourself.",
        (
            "Another operator approves it, on this page. If this installation has one operator only, set "
            "RENSEI_SINGLE_OPERATOR=true, which the front page of the admin then shows."
        ),
    )


class RequestOver(RenseiError):
    """A request was used, withdrawn or approved already, or its time is over."""

    code = "IN_USE"
    status = 409
    title = "The request is over"
    message = Said("This request cannot be used: it is {state}.", "Ask again.")


def ask(kind: str, *, target: str, reason: str, operator: User) -> BreakGlass:
    """
    Ask for an approval by another operator.

    :param target: the id of an integration or platform key; or the new default address
    :raises FieldError: if a value cannot be used
    """
    reason = reason.strip()
    if kind not in Kind.values:
        raise FieldError(pointer="/kind", reason=f"A kind is one of {', '.join(Kind.values)}.")
    if not reason or len(reason) > REASON_LENGTH:
        raise FieldError(pointer="/reason", reason=f"Give a reason of at most {REASON_LENGTH} characters.")
    row = BreakGlass(kind=kind, target=target.strip(), reason=reason, asked_by=operator, asked_at=database_now())
    if kind == Kind.EXPORT:
        key = _find(row.target)
        row.org = key.org if isinstance(key, Integration) else None
        row.provider = key.provider
    else:
        row.target = _clean_address(row.target)
        row.provider = _provider_at(row.target)
    with durable():
        row.save(force_insert=True)
        _record(operator, "break_glass.asked", row)
    _mail(
        f"Rensei: {operator.email} asks for your approval",
        f"{operator.email} asks to {_said(row)}.\n\nReason: {reason}\n\nApprove or ignore it here, until "
        f"{row.asked_at + APPROVED_WITHIN:%Y-%m-%d %H:%M} UTC:\n{settings.PUBLIC_URL}/admin/integrations/breakglass/\n",
        [each.email for each in User.objects.filter(is_staff=True, is_active=True).exclude(pk=operator.pk)],
    )
    return row


def approve(row: BreakGlass, *, operator: User) -> None:
    """
    Approve a request of another operator. A new default address is in force with it; an export may be carried out then.

    :raises SecondOperatorNeeded: if the operator has asked for it
    :raises RequestOver: if it was approved or withdrawn, or its time is over
    """
    if not may_approve(row, operator=operator):
        raise SecondOperatorNeeded
    with durable():
        now = database_now()
        waiting = BreakGlass.objects.filter(pk=row.pk, approved_at=None, withdrawn_at=None)
        is_address = row.kind == Kind.ADDRESS
        taken = waiting.filter(asked_at__gt=now - APPROVED_WITHIN).update(
            approved_by=operator, approved_at=now, used_at=now if is_address else None
        )
        if not taken:
            raise _over(row)
        if is_address:
            DefaultAddress.objects.update_or_create(
                provider=row.provider, defaults={"base_url": row.target, "approved_at": now}
            )
        _record(operator, "break_glass.approved", row, single=row.asked_by_id == operator.pk)
    default_address.forget()
    _mail_owners(row, f"{operator.email} has approved that {_asker(row)} may {_said(row)}.")


def may_approve(row: BreakGlass, *, operator: User) -> bool:
    """Return whether an operator is another one than the one who asked."""
    return row.asked_by_id != operator.pk or settings.RENSEI_SINGLE_OPERATOR


def withdraw(row: BreakGlass, *, operator: User) -> None:
    """
    Withdraw a request, or refuse it, also after it was approved and while it was not used.

    :raises RequestOver: if it was used or withdrawn
    """
    with durable():
        unused = BreakGlass.objects.filter(pk=row.pk, used_at=None, withdrawn_at=None)
        if not unused.update(withdrawn_at=database_now()):
            raise _over(row)
        _record(operator, "break_glass.withdrawn", row)


def export(request_id: str) -> Secret:
    """
    Open a key whose export was approved, once.

    :raises NotFound: if there is no such request, or its key is gone
    :raises RequestOver: if it was not approved, was used or withdrawn, or its time is over
    :raises CredentialUnreadable: if the vault cannot open the key now; it may be tried again
    """
    row = BreakGlass.objects.select_related("org", "asked_by").filter(pk=request_id, kind=Kind.EXPORT).first()
    if row is None:
        raise NotFound
    usable = BreakGlass.objects.filter(pk=row.pk, used_at=None, withdrawn_at=None)
    usable = usable.filter(approved_at__gt=database_now() - USED_WITHIN)
    if not usable.exists():
        raise _over(row)
    key = _find(row.target)
    why = Why(reason=Reason.EXPORT, actor=_asker(row))
    if isinstance(key, Integration):
        opened = credentials.open_key(key, why=why)
    else:
        opened = platform.open_platform_key(key, why=why)
    with durable():
        if not usable.update(used_at=database_now()):
            raise RequestOver(state="used")
        record_system("command", "break_glass.used", object_id=row.pk, org_id=row.org_id, target=row.target)
    _mail_owners(row, f"The key was exported now, as {_asker(row)} had asked for.")
    return _text_of(opened)


def state_of(row: BreakGlass) -> str:
    """Name the state of a request, as of now."""
    now = database_now()
    if row.withdrawn_at:
        return "withdrawn"
    if row.used_at:
        return "used"
    if row.approved_at:
        return "approved" if row.approved_at > now - USED_WITHIN else "over, because it was not used in time"
    return WAITING if row.asked_at > now - APPROVED_WITHIN else "over, because it was not approved in time"


def _over(row: BreakGlass) -> RequestOver:
    row.refresh_from_db()
    return RequestOver(state=state_of(row))


def waiting() -> "list[BreakGlass]":
    """List the requests that wait for an approval."""
    rows = BreakGlass.objects.filter(approved_at=None, withdrawn_at=None, asked_at__gt=database_now() - APPROVED_WITHIN)
    return list(rows.select_related("org", "asked_by").order_by("asked_at"))


def named(row: BreakGlass) -> str:
    """Name the key of a request, with its end and whose it is, so that its id is not all that an operator sees."""
    if row.kind != Kind.EXPORT:
        return ""
    try:
        key = _find(row.target)
    except FieldError:
        return "a key that was removed"
    whose = key.org.name if isinstance(key, Integration) else f"the pool {key.pool}"
    return f"{key.name} of {whose}" + (f", {key.key_hint}" if key.key_hint else "")


def _find(target: str) -> Integration | PlatformKey:
    for found in (
        Integration.objects.select_related("org").filter(pk=target).first(),
        PlatformKey.objects.filter(pk=target).first(),
    ):
        if found is not None:
            return found
    raise FieldError(pointer="/target", reason="There is no integration and no platform key with this id.")


def _provider_at(address: str) -> str:
    """Return the provider whose default address this server is set to use, or that of models, which it will be."""
    waiting = {configured: provider for provider, configured in default_address.unapproved()}
    (of_models,) = ADAPTERS
    return waiting.get(address, of_models)


def _clean_address(text: str) -> str:
    parts = urlsplit(text)
    is_local = parts.scheme == "http" and parts.hostname in LOOPBACK
    if (parts.scheme != "https" and not is_local) or not parts.hostname or parts.username or parts.query:
        raise FieldError(pointer="/target", reason="It is an address such as https://api.anthropic.com.")
    return text.rstrip("/")


def _text_of(opened: Credential) -> Secret:
    return opened.secret if opened.federation is None else opened.federation.sealable()


def _said(row: BreakGlass) -> str:
    if row.kind == Kind.ADDRESS:
        return f"send keys without a base URL of their own to {row.target}"
    return f"export the key {row.target}" + (f" of {row.org.name}" if row.org else " of a pool")


def _asker(row: BreakGlass) -> str:
    return row.asked_by.email if row.asked_by else "an operator who is gone"


def _record(operator: User, action: str, row: BreakGlass, **detail: bool) -> None:
    said = {"kind": row.kind, "target": row.target, "reason": row.reason, **detail}
    record_operator(operator, action, object_id=row.pk, org=row.org, what=said)


def _mail_owners(row: BreakGlass, what: str) -> None:
    """Tell the owners of the organization, or of all whose keys go to the default address; the operators for a pool."""
    if row.org is not None:
        owners = Membership.objects.filter(org=row.org, role=Role.OWNER, user__is_active=True)
    elif row.kind == Kind.ADDRESS:
        orgs = Integration.objects.filter(provider=row.provider, base_url="").values("org")
        owners = Membership.objects.filter(org__in=orgs, role=Role.OWNER, user__is_active=True)
    else:
        owners = Membership.objects.none()
    concerned = Q(pk__in=owners.values("user"))
    if row.org is None:
        concerned |= Q(is_staff=True)
    people = User.objects.filter(concerned, is_active=True).order_by("email")
    to = list(people.values_list("email", flat=True))
    body = f"{what}\n\nReason: {row.reason}\n\nAsk the operators of {settings.PUBLIC_URL} if you did not expect this.\n"
    _mail("Rensei: operators have used break-glass access", body, to)


def _mail(subject: str, body: str, to: Sequence[str]) -> None:
    """Mail each of them by itself, after the answer. A mail server that fails is in the log, and changes nothing."""
    later.do(partial(_mail_each, subject, body, list(to)), what="mail of a break-glass request")


def _mail_each(subject: str, body: str, to: Sequence[str]) -> None:
    for address in to:
        mails.send(subject, body, [address])
