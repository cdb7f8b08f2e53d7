"""The admin site: its front page is Rensei's own, and operators sign in as all people do."""

from allauth.account.decorators import secure_admin_login
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from rensei.accounts.second_factor import is_missing
from rensei.orgs.models import User


class OperatorsSite(AdminSite):
    """
    The admin, with the common sign-in, its rate limits and its second step.

    If a second factor is required, those without one are redirected to its setup, and have no access before.
    """

    index_title = "Overview"

    def has_permission(self, request: HttpRequest) -> bool:
        return super().has_permission(request) and not (isinstance(request.user, User) and is_missing(request.user))

    def login(self, request: HttpRequest, extra_context: dict[str, object] | None = None) -> HttpResponse:
        answer: HttpResponse = secure_admin_login(self._sign_in)(request, extra_context)
        return answer

    def _sign_in(self, request: HttpRequest, extra_context: dict[str, object] | None = None) -> HttpResponse:
        if isinstance(request.user, User) and request.user.is_staff and is_missing(request.user):
            messages.info(request, "The admin opens once you have set up two-step sign-in.")
            return redirect("mfa_activate_totp")
        return super().login(request, extra_context)
