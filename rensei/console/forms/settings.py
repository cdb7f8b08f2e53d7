"""The small forms of Settings: projects and API tokens."""

from collections.abc import Iterable
from typing import Any

from django import forms

from rensei.console.forms.base import RefusableForm, id_field
from rensei.dispatch.models import CapacityPool
from rensei.orgs import scopes
from rensei.orgs.models import Project

EXPIRY_DAYS = (("", "Never"), ("7", "In 7 days"), ("30", "In 30 days"), ("90", "In 90 days"), ("365", "In a year"))


class ProjectForm(RefusableForm):
    """A new project."""

    name = forms.CharField(max_length=120, widget=forms.TextInput(attrs={"placeholder": "My Project"}))
    slug = id_field(fallback="project")


class RenameForm(RefusableForm):
    """Another name for a project, and the pool of its runs that name none."""

    name = forms.CharField(max_length=120)
    pool = forms.ChoiceField(
        label="Default pool", required=False, help_text="Where its runs execute, unless the request names a pool."
    )

    def __init__(self, *args: Any, pools: Iterable[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["pool"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [("", "local"), *((name, name) for name in pools)]


class AppTokenForm(RefusableForm):
    """The name of a token for an app that calls the gateway."""

    name = forms.CharField(max_length=120, initial="my-app", help_text="What will use it.")


def cap_field() -> forms.DecimalField:
    """The most that the runs of a token may cost in a month, in dollars."""
    return forms.DecimalField(
        label="Cap, USD per month",
        required=False,
        min_value=0,
        max_digits=18,
        max_value=999_999,
        decimal_places=12,
        help_text="The most that its runs may cost in a UTC month, for every payer. Empty means no cap.",
        widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal", "placeholder": "25.00"}),
    )


class TokenCapForm(RefusableForm):
    """The cap of a token."""

    cap = cap_field()


class TokenForm(RefusableForm):
    """A new API token of the viewer's own."""

    name = forms.CharField(max_length=120, help_text="What will use it, such as ci or laptop.")
    project = forms.ChoiceField(required=False, help_text="A token of one project sees nothing of the others.")
    expires = forms.ChoiceField(label="Expires", choices=EXPIRY_DAYS, initial="90", required=False)
    scopes = forms.MultipleChoiceField(
        label="May be used to",
        choices=[(scope.value, scope.label) for scope in scopes.DEFAULT],
        initial=[scope.value for scope in scopes.DEFAULT],
        error_messages={"required": "Choose at least one."},
    )
    cap = cap_field()
    allowed_networks = forms.CharField(
        required=False,
        max_length=2000,
        help_text="Such as 192.0.2.0/24, separated by spaces. Elsewhere the token is refused. Empty means anywhere.",
        widget=forms.TextInput(attrs={"class": "input--mono", "autocomplete": "off"}),
    )

    def __init__(self, *args: Any, projects: list[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["project"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [("", "All projects"), *((project.slug, project.name) for project in projects)]


class PoolForm(RefusableForm):
    """The settings of a capacity pool, and whether dispatches may use it."""

    config = forms.JSONField(
        label="Settings",
        required=False,
        initial=dict,
        help_text="As JSON: the settings of the provider. Empty means its defaults.",
        widget=forms.Textarea(attrs={"class": "input--mono", "rows": 4, "spellcheck": "false", "placeholder": "{}"}),
    )
    active = forms.BooleanField(required=False, initial=True, help_text="Dispatches to an inactive pool are refused.")

    def clean_config(self) -> dict[str, Any]:
        config = self.cleaned_data["config"]
        if config is None:
            return {}
        if not isinstance(config, dict):
            raise forms.ValidationError('Write an object, such as {"lifetimeSeconds": 1800}.')
        return config

    def fields_of_text(self) -> list[forms.BoundField]:
        return [field for field in self if field.name != "active"]


class NewPoolForm(PoolForm):
    """A capacity pool to add."""

    name = forms.CharField(
        max_length=63,
        help_text="Lower-case letters, digits and dashes. Dispatches name the pool by it, and it never changes.",
        widget=forms.TextInput(attrs={"class": "input--mono", "autocomplete": "off", "spellcheck": "false"}),
    )
    provider_id = forms.ChoiceField(label="Provider", choices=CapacityPool.Provider.choices, initial="sandbox")
    field_order = ("name", "provider_id", "config", "active")
