"""The form of a model profile. It offers only what the chosen model offers."""

from typing import Any

from django import forms

from catalog.models import CatalogEntry
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.console.forms.base import RefusableForm, id_field
from rensei.core.auth_modes import AuthMode
from rensei.orgs.models import Project


class ProfileForm(RefusableForm):
    """
    A model profile. `entry` is the chosen model, `served` the model that a call would use.

    The model's value is `<provider>:<model id>`, because two providers may use one id.
    """

    name = forms.CharField(max_length=63, widget=forms.TextInput(attrs={"placeholder": "deep-reasoning"}))
    slug = id_field(prefix="prof_", separator="_", fallback="profile", length=68)
    model_id = forms.ChoiceField(label="Model")
    auth_modes = forms.MultipleChoiceField(label="Auth modes")
    effort = forms.ChoiceField(label="Reasoning Effort", required=False)
    scope = forms.ChoiceField(choices=ModelProfile.Scope.choices, initial=ModelProfile.Scope.ORGANIZATION)
    project = forms.ChoiceField(required=False, help_text="Only for the scope Project.")
    integration = forms.ChoiceField(
        required=False, help_text="Key for BYOK runs. Leave empty to use the default connection."
    )
    system = forms.CharField(
        label="System prompt", required=False, strip=False, widget=forms.Textarea(attrs={"rows": 4})
    )
    max_tokens = forms.IntegerField(
        label="Max tokens", required=False, min_value=1, help_text="The longest answer, thinking included."
    )
    context_window = forms.IntegerField(
        label="Context window", required=False, min_value=1, help_text="Limit it for cost or speed."
    )
    prompt_caching = forms.ChoiceField(
        label="Prompt caching", choices=ModelProfile.PromptCaching.choices, required=False
    )
    is_default = forms.BooleanField(
        label="Make it the default", required=False, help_text="Used when a request does not name a profile."
    )

    def __init__(
        self,
        *args: Any,
        groups: list[tuple[str, list[tuple[str, str]]]],
        entry: CatalogEntry,
        served: CatalogEntry,
        projects: list[Project],
        integrations: list[Integration],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.entry, self.served = entry, served
        self._choices("model_id", groups)
        self._choices("auth_modes", [(mode.value, mode.label) for mode in AuthMode if mode in entry.auth_modes])
        self._choices("project", [("", "None"), *((project.slug, project.name) for project in projects)])
        own = [found for found in integrations if found.provider == entry.provider]
        self._choices("integration", [("", "The provider's default"), *((found.id, str(found)) for found in own)])
        if served.effort_levels:
            default = "medium" if "medium" in served.effort_levels else "none"
            levels = [(choice["value"], choice["label"]) for choice in served.efforts]
            self._choices("effort", [("", f"Default ({default})"), *levels])
        else:
            del self.fields["effort"]
        if not served.capabilities.get("promptCaching"):
            del self.fields["prompt_caching"]
        self._limit("max_tokens", served.max_output_tokens)
        windows = [model.context_window_tokens for model in (entry, served) if model.context_window_tokens]
        self._limit("context_window", min(windows, default=None))

    @property
    def has_advanced(self) -> bool:
        """Whether a field that is folded away has a value or an error."""
        filled = any(self[name].value() for name in ("system", "max_tokens", "context_window", "integration"))
        wrong = any(self[name].errors for name in ("project", "max_tokens", "context_window", "integration"))
        return filled or wrong or self["scope"].value() == ModelProfile.Scope.PROJECT

    def _choices(self, name: str, choices: Any) -> None:
        field = self.fields[name]
        assert isinstance(field, forms.ChoiceField)
        field.choices = choices

    def _limit(self, name: str, largest: int | None) -> None:
        if largest is not None:
            self.fields[name].widget.attrs["placeholder"] = f"up to {largest:,}"
