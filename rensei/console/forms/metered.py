"""The form that requests metered."""

from django import forms

from billing.limits.metered_requests import PURPOSE_LENGTH
from rensei.console.forms.base import RefusableForm


class MeteredRequestForm(RefusableForm):
    """The organization's reason for its request for metered."""

    purpose = forms.CharField(
        label="What do you need it for?",
        required=False,
        max_length=PURPOSE_LENGTH,
        help_text="Your operator reads it beside your name and your organization's.",
        widget=forms.Textarea(attrs={"rows": 3}),
    )
