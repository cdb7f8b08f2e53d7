"""The forms of Settings → Integrations."""

from django import forms

from rensei.console.forms.base import RefusableForm
from rensei.core.form_fields import secret_input


class ConnectForm(RefusableForm):
    """Connect a provider with a key."""

    api_key = forms.CharField(label="API key", widget=secret_input())
    name = forms.CharField(
        required=False, help_text="How people of your organization tell it apart, such as Production."
    )
    base_url = forms.CharField(
        label="Base URL",
        required=False,
        help_text="Only for a proxy or a gateway of your own. Leave it empty to call the provider directly.",
        widget=forms.TextInput(attrs={"inputmode": "url", "autocomplete": "off", "placeholder": "https://"}),
    )
    workspace_id = forms.CharField(
        label="Workspace ID",
        required=False,
        help_text="Only if the key is bound to a workspace.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "class": "input--mono"}),
    )
    is_default = forms.BooleanField(
        label="Make it the default",
        required=False,
        help_text="Profiles that name no integration use the default. The first one of a provider always is it.",
    )


class EditForm(ConnectForm):
    """Rename an integration, or change its address, which requires its key."""

    api_key = forms.CharField(
        label="API key",
        required=False,
        widget=secret_input(),
        help_text="Only needed when the base URL changes: the stored key is bound to the address it was saved with.",
    )
    name = forms.CharField()
    is_default = None  # type: ignore[assignment]


class RotateForm(RefusableForm):
    """Replace a key."""

    api_key = forms.CharField(label="New API key", widget=secret_input())
    force = forms.BooleanField(
        label="Store it without a test",
        required=False,
        help_text="Use this only while the provider cannot be reached. The key in use is gone at once.",
    )
