"""The form that asks for metered."""

from django import forms

from billing.limits.metered_requests import PURPOSE_LENGTH
from rensei.console.forms.base import RefusableForm


class MeteredRequestForm(RefusableForm):
    """What the organization wants metered for, in its own words."""

    purpose = forms.CharField(
        label="What do you need it for?",
        required=False,
        max_length=PURPOSE_LENGTH,
        help_text="Your operator reads it beside your name and your organization's.",
        widget=forms.Textarea(attrs={"rows": 3}),
    )
