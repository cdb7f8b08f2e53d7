"""
How a machine without a browser is signed in: it shows a short code, and a signed-in person approves it.

The device authorization grant of RFC 8628 (https://www.rfc-editor.org/rfc/rfc8628), for machines that register.
"""

import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.db.models import QuerySet

from rensei.audit.record import record
from rensei.core.clock import database_now
from rensei.core.errors import NotFound, RenseiError, Said
from rensei.core.limits import limit
from rensei.core.rates import rates
from rensei.core.secret import Secret, keyed_digests, token_digest
from rensei.core.transactions import durable
from rensei.orgs import locks
from rensei.orgs.access import Access, for_member
from rensei.orgs.models import WRITERS, Host, Membership, User
from rensei.orgs.services import memberships_of
from rensei.orgs.shapes import clean_name
from rensei.tokens import machines
from rensei.tokens.models import ApiToken, DeviceCode

LIFETIME = timedelta(minutes=10)
POLL_SECONDS = 2
# Consonants only, as RFC 8628, section 6.1, advises: easy to type, and they form no words.
ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"
CODE_LENGTH = 8
WRONG_CODES_MAX = limit(
    10,
    "codes",
    what="Wrong codes of machines that a person enters within the time of one",
    told="the caller: 429 `RATE_LIMITED`",
)
KEPT = timedelta(hours=1)


class DeviceCodePending(RenseiError):
    """The machine has not been approved yet."""

    code = "DEVICE_CODE_PENDING"
    status = 428
    title = "Waiting for approval"
    message = Said(
        "This machine is not approved yet.", "Open the address that was shown, and ask again in two seconds."
    )
    retryable = True


class DeviceCodeInvalid(RenseiError):
    """The device code is unknown, expired or used, or was denied."""

    code = "DEVICE_CODE_INVALID"
    status = 400
    title = "Device code not valid"
    message = Said(
        "This code is unknown, has expired or was used, or the machine was denied.", "Run rensei setup again."
    )


@dataclass(frozen=True, kw_only=True)
class DeviceCodePair:
    """A new request of a machine. `device_code` is the machine's secret; `user_code` is shown to the person."""

    device_code: Secret
    user_code: str
    expires_in: int = int(LIFETIME.total_seconds())
    interval: int = POLL_SECONDS

    @property
    def verification_uri(self) -> str:
        return f"{settings.PUBLIC_URL}/device"

    @property
    def verification_uri_complete(self) -> str:
        return f"{self.verification_uri}?code={self.user_code}"


@dataclass(frozen=True, kw_only=True)
class DeviceGrant:
    """A machine that was approved, with its token, which can be read only now."""

    host: Host
    token: ApiToken
    secret: Secret


def ask(*, host_name: str, address: str | None) -> DeviceCodePair:
    """
    Store a machine's request.

    :raises FieldError: if its name has the wrong form
    """
    host_name = clean_name(host_name, pointer="/hostName")
    device_code = secrets.token_urlsafe(32)
    letters = "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))
    user_code = f"{letters[:4]}-{letters[4:]}"
    now = database_now()
    with durable():
        DeviceCode.objects.filter(expires_at__lt=now - KEPT).delete()
        DeviceCode.objects.create(
            device_digest=token_digest(device_code),
            user_digest=_user_digests(user_code)[0],
            host_name=host_name,
            address=address,
            created_at=now,
            expires_at=now + LIFETIME,
        )
    return DeviceCodePair(device_code=Secret(device_code), user_code=user_code)


def find_waiting(user: User, *, user_code: str) -> DeviceCode:
    """
    Find the machine that shows this code.

    :raises NotFound: if there is none, or the code has expired or was answered
    :raises RateLimited: if the person has tried too many wrong codes
    """
    _require_tries_left(user)
    waiting = DeviceCode.objects.filter(state=DeviceCode.State.PENDING, expires_at__gt=database_now())
    found: DeviceCode | None = waiting.filter(user_digest__in=_user_digests(user_code)).first()
    if found is None:
        _count_wrong_code(user)
        raise NotFound
    return found


def memberships_to_choose(user: User) -> QuerySet[Membership]:
    """List the memberships with which a person may register a machine."""
    return memberships_of(user).filter(role__in=WRITERS).order_by("org__slug")


def approve(access: Access, device: DeviceCode) -> None:
    """
    Approve the machine for the caller's organization. Its token is made when the machine fetches it.

    :raises NotFound: if the code has expired or was answered meanwhile
    :raises LimitReached: if the person has as many machines as one may
    """
    access.require_writer()
    with durable():
        # It is counted again when the token is made; a person who is refused here can revoke a machine first.
        machines.require_room(access)
        _answer(device, state=DeviceCode.State.APPROVED, approved_by=access.user, org=access.org)
        record(access, "device.approved", object_id=str(device.pk), name=device.host_name, asked_from=device.address)


def deny(device: DeviceCode) -> None:
    """
    Deny the machine.

    :raises NotFound: if the code has expired or was answered meanwhile
    """
    with durable():
        _answer(device, state=DeviceCode.State.DENIED)


def fetch_token(*, device_code: Secret, address: str | None) -> DeviceGrant:
    """
    Register an approved machine and make its token, once.

    :raises DeviceCodePending: if the machine has been neither approved nor denied
    :raises DeviceCodeInvalid: if the code is unknown, expired, used or denied
    :raises LimitReached: if the person has as many machines as one may; the code stays valid for another try
    """
    with durable():
        asked = DeviceCode.objects.filter(
            device_digest=token_digest(device_code.reveal()), expires_at__gt=database_now()
        )
        device: DeviceCode | None = asked.select_related("approved_by", "org").first()
        if device is None:
            raise DeviceCodeInvalid
        if device.state == DeviceCode.State.PENDING:
            raise DeviceCodePending
        if device.org_id is not None:
            # As a deletion does, which then deletes its codes.
            with suppress(NotFound):
                locks.lock(device.org_id)
        # The update decides which of two fetches at the same moment gets the token.
        if not asked.filter(state=DeviceCode.State.APPROVED).update(state=DeviceCode.State.USED):
            raise DeviceCodeInvalid
        assert device.approved_by is not None
        assert device.org is not None
        access = for_member(user=device.approved_by, slug=device.org.slug, address=address)
        if access is None or not access.writes:
            # The approving member has left since, or may no longer register machines.
            raise DeviceCodeInvalid
        host, token, secret = machines.insert_host(access, name=device.host_name)
    return DeviceGrant(host=host, token=token, secret=secret)


def _answer(device: DeviceCode, **answer: object) -> None:
    waiting = DeviceCode.objects.filter(pk=device.pk, state=DeviceCode.State.PENDING, expires_at__gt=database_now())
    if not waiting.update(**answer):
        raise NotFound


def _user_digests(user_code: str) -> list[str]:
    """Hash a user code with the server's secret: it is short, so a plain hash could be brute-forced."""
    letters = "".join(letter for letter in user_code.upper() if letter.isalpha())
    return keyed_digests(letters, salt="rensei.orgs.device-code")


def _require_tries_left(user: User) -> None:
    window = rates.count_exactly(_wrong_codes_key(user), seconds=LIFETIME.total_seconds(), by=0)
    if window.total >= WRONG_CODES_MAX:
        raise rates.refusal(window.ends_at)


def _count_wrong_code(user: User) -> None:
    rates.count_exactly(_wrong_codes_key(user), seconds=LIFETIME.total_seconds())


def _wrong_codes_key(user: User) -> str:
    return f"wrong-device-codes:{user.pk}"
