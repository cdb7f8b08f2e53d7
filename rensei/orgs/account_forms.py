"""The library's forms, with what our pages say differently."""

from typing import Any

from allauth.account import forms as account_forms
from allauth.mfa.base import forms as mfa_forms
from allauth.mfa.totp import forms as totp_forms
from django import forms


class NewPassword:
    """Says what a password needs in one line. The library lists every rule; the one that is broken is told anyway."""

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


class NumericCode:
    """Brings up the digits on a phone. Recovery codes are digits too."""

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
