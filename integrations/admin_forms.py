"""The form of a platform key, its federation, and the test of what was entered."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from django import forms
from django.contrib.admin.utils import unquote
from django.http import HttpRequest

from catalog.admin_forms import current_entries, labelled
from catalog.providers import PROVIDERS
from integrations.keys import platform, shapes
from integrations.models import PlatformKey
from integrations.providers.base import Federation, Verdict
from rensei.core.errors import RenseiError
from rensei.core.form_fields import secret_input
from rensei.core.secret import Secret


def _provider_choices() -> list[tuple[str, str]]:
    return [(spec.id, spec.display_name) for spec in PROVIDERS.values()]


def _model_choices(kept: Sequence[str]) -> list[tuple[str, str]]:
    """The current models, and those that the key names already."""
    current = labelled(current_entries())
    return [*current, *((model, f"{model} (retired)") for model in kept if model not in dict(current))]


# The fields of a federation, by the names of its ids.
FEDERATION_FIELDS = {
    "rule_id": "federation_rule",
    "organization_id": "federation_organization",
    "service_account_id": "federation_service_account",
}


class PlatformKeyForm(forms.ModelForm[PlatformKey]):
    """
    A key of a pool, or a federation in its place. The key can be entered but is never shown. If left empty on a change,
    what is stored is kept.
    """

    provider = forms.ChoiceField(choices=_provider_choices)
    model_ids = forms.MultipleChoiceField(
        label="Models",
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="What the key serves. A shared key names them; a metered key without any serves all.",
    )
    api_key = forms.CharField(
        label="API key",
        strip=False,
        required=False,
        widget=secret_input(),
        help_text="It is sealed, and never shown again. Leave it empty for a federation.",
    )
    federation_rule = forms.CharField(
        required=False, help_text="fdrl_…, in place of a key: see /docs/providers/anthropic#without-a-stored-key"
    )
    federation_organization = forms.CharField(required=False, help_text="The UUID of the Anthropic organization")
    federation_service_account = forms.CharField(required=False, help_text="svac_…")

    force = forms.BooleanField(
        label="Save even if the test fails",
        required=False,
        help_text="A key is tested before it is saved, with a call that costs nothing.",
    )
    # The result of the test, which was made before the page's transaction. None: no key was entered.
    verdict: ClassVar[Verdict | None] = None

    class Meta:
        model = PlatformKey
        fields = ["provider", "pool", "name", "workspace_id", "model_ids", "max_tokens_cap", "weight", "active"]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        models = self.fields["model_ids"]
        assert isinstance(models, forms.MultipleChoiceField)
        models.choices = _model_choices(self.instance.model_ids)
        if not self.instance._state.adding:  # noqa: SLF001 - the documented way to tell
            self.fields["api_key"].help_text = "Leave it empty to keep the stored key. Paste another to replace it."
            stored = self.instance.federation
            for name, field in FEDERATION_FIELDS.items():
                self.fields[field].initial = getattr(Federation.of_wire(stored), name) if stored else ""

    def clean_api_key(self) -> Secret | None:
        text = self.cleaned_data["api_key"]
        if not text:
            return None
        try:
            return shapes.clean_key(Secret(text), provider=self.data.get("provider") or self.instance.provider)
        except RenseiError as refusal:
            raise forms.ValidationError(refusal.detail) from None

    def clean(self) -> dict[str, Any]:
        fields = super().clean() or self.cleaned_data
        found = self.verdict
        # A provider that is busy or unreachable says nothing about the key.
        if found is not None and not found.ok and found.conclusive and not fields.get("force") and "api_key" in fields:
            self.add_error("api_key", f"{found.message} {found.fix}".strip())
        self._require_given(fields)
        pool = fields.get("pool") or self.instance.pool
        if pool == PlatformKey.Pool.SHARED and not fields.get("model_ids"):
            self.add_error("model_ids", "A shared key names the models that it gives away.")
        if pool == PlatformKey.Pool.SHARED and not fields.get("max_tokens_cap"):
            self.add_error("max_tokens_cap", "A shared key caps the tokens of one answer.")
        return fields

    def _require_given(self, fields: dict[str, Any]) -> None:
        """Require what a change needs: a new key for a new workspace, and exactly one of a key and a federation."""
        federation = _federation_of(fields)
        is_new = self.instance._state.adding  # noqa: SLF001 - the documented way to tell
        is_changed = is_new or federation != _stored_federation(self.instance) or "workspace_id" in self.changed_data
        fields["federation"] = federation if is_changed else None
        if "api_key" not in fields:
            return
        if fields["api_key"] is not None and fields["federation"] is not None:
            self.add_error("api_key", "Enter either a key or a federation, and not both.")
        elif fields["api_key"] is None and federation is None and is_changed:
            self.add_error("api_key", "Enter the key, or the three ids of a federation.")
        elif federation is not None and fields["federation"] is not None:
            try:
                shapes.clean_given(federation, provider=fields.get("provider") or self.instance.provider)
            except RenseiError as refusal:
                self.add_error("federation_rule", refusal.detail)


def _federation_of(fields: Mapping[str, Any]) -> Federation | None:
    """Read the ids of a federation from a form's values; None if none was entered."""
    ids = {name: str(fields.get(field) or "").strip() for name, field in FEDERATION_FIELDS.items()}
    return Federation(**ids) if any(ids.values()) else None


def _stored_federation(key: PlatformKey) -> Federation | None:
    return Federation.of_wire(key.federation) if key.federation else None


def verdict_of(request: HttpRequest) -> Verdict | None:
    """Test what was entered; None if that is what is stored, or if the form will refuse it anyway."""
    text, federation = request.POST.get("api_key", ""), _federation_of(request.POST)
    match = request.resolver_match
    key = PlatformKey.objects.filter(pk=unquote(match.kwargs.get("object_id", ""))).first() if match else None
    workspace_id = request.POST.get("workspace_id", "")
    if key and federation == _stored_federation(key) and workspace_id == key.workspace_id:
        federation = None
    if not text and federation is None:
        return None
    try:
        return platform.check_new_key(
            provider=key.provider if key else request.POST.get("provider", ""),
            pool=key.pool if key else request.POST.get("pool", ""),
            api_key=Secret(text) if text else None,
            federation=federation,
            workspace_id=workspace_id,
        )
    except RenseiError:
        return None
