"""Effects of a change of sign-in methods: other sessions end, and the audit log records it."""

from typing import Any

import structlog
from allauth.account.signals import password_changed, password_reset, password_set
from allauth.mfa.models import Authenticator
from allauth.mfa.signals import authenticator_added, authenticator_removed, authenticator_reset
from allauth.usersessions.models import UserSession
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.dispatch import receiver
from django.http import HttpRequest

from rensei.accounts import people
from rensei.accounts.sessions import end_other_sessions
from rensei.audit.record import record_person
from rensei.core.proxies import client_address
from rensei.orgs.models import User

logger = structlog.get_logger(__name__)
ACTIONS = {Authenticator.Type.TOTP: "two_step", Authenticator.Type.RECOVERY_CODES: "recovery_codes"}


@receiver(user_logged_in)
def _person_signed_in(request: HttpRequest, user: User, **rest: Any) -> None:
    # It may have begun before the sign-in, with a shorter time.
    request.session.set_expiry(None)
    logger.info("signed_in", user_id=user.pk, address=client_address(request))


@receiver(user_login_failed)
def _sign_in_failed(request: HttpRequest | None = None, **rest: Any) -> None:
    """Log a failed try without the name that was entered: people type passwords into that field."""
    logger.info("sign_in_failed", address=client_address(request) if request is not None else None)


@receiver(user_logged_out)
def _person_signed_out(request: HttpRequest, user: User | None, **rest: Any) -> None:
    request.signed_out = True  # type: ignore[attr-defined]
    if user is not None:
        logger.info("signed_out", user_id=user.pk)


@receiver([password_changed, password_set])
def _password_was_changed(request: HttpRequest, user: User, **rest: Any) -> None:
    record_person(user, "password.changed", address=client_address(request))
    end_other_sessions(request, user)


@receiver(password_reset)
def _password_was_reset(request: HttpRequest, user: User, **rest: Any) -> None:
    """End every session, because a person who resets a password is not signed in."""
    record_person(user, "password.reset", address=client_address(request))
    people.prove_address(user, address=client_address(request))
    for session in UserSession.objects.filter(user=user):
        session.end()


@receiver(authenticator_added)
def _authenticator_was_added(request: HttpRequest, user: User, authenticator: Authenticator, **rest: Any) -> None:
    record_person(user, f"{ACTIONS[authenticator.type]}.added", address=client_address(request))
    if authenticator.type == Authenticator.Type.TOTP:
        # They were opened with the password alone.
        end_other_sessions(request, user)


@receiver(authenticator_removed)
def _authenticator_was_removed(request: HttpRequest, user: User, authenticator: Authenticator, **rest: Any) -> None:
    record_person(user, f"{ACTIONS[authenticator.type]}.removed", address=client_address(request))


@receiver(authenticator_reset)
def _recovery_codes_were_made_anew(request: HttpRequest, user: User, **rest: Any) -> None:
    record_person(user, "recovery_codes.renewed", address=client_address(request))
