"""Who must sign in with a second factor, and how it is enforced."""

from collections.abc import Callable

from allauth.account.decorators import secure_admin_login
from allauth.mfa.models import Authenticator
from allauth.mfa.utils import is_mfa_enabled
from django.conf import settings
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

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


def guard(site: AdminSite) -> None:
    """
    Make operators sign in to the admin by the common sign-in, with its rate limits and its second step.

    If a second factor is required, those without one are redirected to its setup, and have no access before.
    """
    may_enter, sign_in = site.has_permission, site.login

    def has_permission(request: HttpRequest) -> bool:
        return may_enter(request) and not (isinstance(request.user, User) and is_missing(request.user))

    def login(request: HttpRequest, extra_context: dict[str, object] | None = None) -> HttpResponse:
        if isinstance(request.user, User) and request.user.is_staff and is_missing(request.user):
            messages.info(request, "The admin opens once you have set up two-step sign-in.")
            return redirect("mfa_activate_totp")
        return sign_in(request, extra_context)

    secured: Callable[..., HttpResponse] = secure_admin_login(login)
    site.has_permission = has_permission  # type: ignore[method-assign]
    site.login = secured  # type: ignore[method-assign]


def remove(user: User, *, actor: str) -> bool:
    """Remove a person's second factor, for those who have lost it. Returns whether there was one."""
    with durable():
        count, _ = Authenticator.objects.filter(user=user).delete()
        if count:
            record_person(user, "two_step.removed", address=None, actor=actor)
    return bool(count)
