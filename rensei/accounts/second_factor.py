"""Who must sign in with a second factor, and how it is enforced."""

from allauth.mfa.models import Authenticator
from allauth.mfa.utils import is_mfa_enabled
from django.conf import settings

from rensei.audit.record import record_person
from rensei.core.transactions import durable
from rensei.orgs.models import User


def is_required(user: User) -> bool:
    """Check whether a person must have a second factor: operators, if the setting requires it."""
    return settings.RENSEI_REQUIRE_STAFF_MFA and user.is_staff


def is_missing(user: User) -> bool:
    """Check whether a person must have a second factor and has none."""
    return is_required(user) and not is_set_up(user)


def is_set_up(user: User) -> bool:
    """Check whether a person needs a second factor at every sign-in."""
    enabled: bool = is_mfa_enabled(user, [Authenticator.Type.TOTP])
    return enabled


def remove(user: User, *, actor: str) -> bool:
    """Remove a person's second factor, for those who have lost it. Returns whether there was one."""
    with durable():
        count, _ = Authenticator.objects.filter(user=user).delete()
        if count:
            record_person(user, "two_step.removed", address=None, actor=actor)
    return bool(count)
