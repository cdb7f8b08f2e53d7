"""The shapes of this room's forms; what is allowed is the services' business."""

from typing import Any

from django import forms

from rensei.core.errors import RenseiError


class SetupForm(forms.Form):
    """The first account and the first organization."""

    name = forms.CharField(label="Your name", max_length=120)
    email = forms.EmailField(label="Email", max_length=254, widget=forms.EmailInput(attrs={"autocomplete": "username"}))
    password = forms.CharField(
        label="Password",
        strip=False,
        help_text="At least 10 characters.",
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )
    org_name = forms.CharField(label="Organization", max_length=120)
    org_slug = forms.SlugField(
        label="Its short name in addresses", max_length=63, help_text="Such as acme: small letters, digits, hyphens."
    )
    code = forms.CharField(widget=forms.HiddenInput)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.label_suffix = ""

    def show(self, refusal: RenseiError) -> None:
        """Show a refusal beside the fields that it names, or above them all."""
        for error in getattr(refusal, "errors", [{"pointer": "", "detail": refusal.detail}]):
            name = error["pointer"].removeprefix("/").replace("slug", "org_slug")
            self.add_error(name if name in self.fields else None, error["detail"])
