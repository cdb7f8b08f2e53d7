"""The forms of Settings → Integrations."""

from typing import Any

from django import forms

from catalog.providers import ProviderSpec
from integrations.keys import shapes
from integrations.providers.base import Federation
from rensei.console.forms.base import RefusableForm
from rensei.core.form_fields import secret_input


class ConnectForm(RefusableForm):
    """Connect a provider with a key."""

    api_key = forms.CharField(label="API key", widget=secret_input())
    name = forms.CharField(required=False, help_text="A name your team will recognize, such as Production.")
    base_url = forms.CharField(
        label="Base URL",
        required=False,
        help_text="Only for a proxy or a gateway of your own. Leave it empty to call the provider directly.",
        widget=forms.TextInput(attrs={"inputmode": "url", "autocomplete": "off", "placeholder": "https://"}),
    )
    workspace_id = forms.CharField(
        required=False, widget=forms.TextInput(attrs={"autocomplete": "off", "class": "input--mono"})
    )
    is_default = forms.BooleanField(
        label="Make it the default",
        required=False,
        help_text="Used by profiles that do not name an integration. A provider's first key is always the default.",
    )

    def __init__(self, *args: Any, spec: ProviderSpec, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["api_key"].help_text = spec.key_help or self.fields["api_key"].help_text
        self.fields["workspace_id"].label = spec.workspace_label
        self.fields["workspace_id"].help_text = spec.workspace_help


class FederationIds(RefusableForm):
    """The ids at the provider by which it knows the organization's identity."""

    rule_id = forms.CharField(
        label="Federation rule",
        help_text="Begins with fdrl_.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "class": "input--mono", "placeholder": "fdrl_…"}),
    )
    organization_id = forms.CharField(
        label="Anthropic organization",
        help_text="A UUID, shown in the Claude Console under Settings, Organization.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "class": "input--mono"}),
    )
    service_account_id = forms.CharField(
        label="Service account",
        help_text="Begins with svac_.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "class": "input--mono", "placeholder": "svac_…"}),
    )

    def federation(self) -> Federation:
        names = ("rule_id", "organization_id", "service_account_id")
        return Federation(**{name: self.cleaned_data[name].strip() for name in names})


class FederateForm(FederationIds):
    """Connect a provider without a stored key."""

    workspace_id = forms.CharField(
        label="Workspace ID",
        required=False,
        help_text="Only if the rule is enabled for several workspaces: wrkspc_…, or default.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "class": "input--mono"}),
    )
    name = forms.CharField(required=False, help_text="A name your team will recognize, such as Production.")
    is_default = forms.BooleanField(
        label="Make it the default",
        required=False,
        help_text="Used by profiles that do not name an integration. A provider's first key is always the default.",
    )


class ReplaceFederationForm(FederationIds):
    """Replace the ids of a federation, or a key by a federation."""

    force = forms.BooleanField(
        label="Store it without a test",
        required=False,
        help_text="Use only while the provider is unreachable. What is stored now is deleted immediately.",
    )


class EditForm(ConnectForm):
    """Rename an integration, or change its address, which requires its key."""

    api_key = forms.CharField(
        label="API key",
        required=False,
        widget=secret_input(),
        help_text="Required only if the base URL changes, because the stored key is bound to its address.",
    )
    name = forms.CharField()
    is_default = None  # type: ignore[assignment]
    remind_after_days = forms.IntegerField(
        label="Remind us after this many days",
        required=False,
        min_value=1,
        max_value=shapes.REMIND_AFTER_DAYS_MAX,
        help_text="When the key is this old, owners and admins get a mail. Leave it empty for no reminder.",
    )


class RotateForm(RefusableForm):
    """Replace a key."""

    api_key = forms.CharField(label="New API key", widget=secret_input())
    force = forms.BooleanField(
        label="Store it without a test",
        required=False,
        help_text="Use only while the provider is unreachable. The current key is deleted immediately.",
    )
