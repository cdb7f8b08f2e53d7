"""The library's forms, with the changes for our pages."""

from functools import partial
from typing import Any

from allauth.account import forms as account_forms
from allauth.account.internal import userkit
from allauth.account.internal.flows import password_reset
from allauth.core.context import request_context
from allauth.mfa.base import forms as mfa_forms
from allauth.mfa.totp import forms as totp_forms
from django import forms
from django.http import HttpRequest

from rensei.accounts import sign_in_tries
from rensei.core.later import later


class NewPassword:
    """A one-line help text for new passwords. The library lists every rule; an error names the broken one anyway."""

    fields: dict[str, forms.Field]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["password1"].help_text = "At least 10 characters."


class ChangePasswordForm(NewPassword, account_forms.ChangePasswordForm):  # type: ignore[misc]
    pass


class SetPasswordForm(NewPassword, account_forms.SetPasswordForm):  # type: ignore[misc]
    pass


class ResetPasswordKeyForm(NewPassword, account_forms.ResetPasswordKeyForm):  # type: ignore[misc]
    pass


class ResetPasswordForm(account_forms.ResetPasswordForm):  # type: ignore[misc]
    """Requests a link. The account is looked up after the answer, which is the same with or without one."""

    def clean_email(self) -> str:
        return str(self.cleaned_data["email"]).lower()

    def save(self, request: HttpRequest, **_options: Any) -> str:
        email: str = self.cleaned_data["email"]
        later.do(partial(_mail_link, request, email), what="mail of a password reset")
        return email


def _mail_link(request: HttpRequest, email: str) -> None:
    users = userkit.filter_users_by_email(email, is_active=True, prefer_verified=True, for_login=True)
    if users and sign_in_tries.may_mail_reset(email):
        with request_context(request):
            password_reset.request_password_reset(request, email, users, account_forms.default_token_generator)


class NumericCode:
    """Opens the numeric keyboard on a phone. Recovery codes are digits too."""

    fields: dict[str, forms.Field]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["code"].widget = forms.TextInput(attrs={"autocomplete": "one-time-code", "inputmode": "numeric"})


class AuthenticateForm(NumericCode, mfa_forms.AuthenticateForm):  # type: ignore[misc]
    pass


class ReauthenticateForm(NumericCode, mfa_forms.ReauthenticateForm):  # type: ignore[misc]
    pass


class ActivateTotpForm(NumericCode, totp_forms.ActivateTOTPForm):  # type: ignore[misc]
    pass
