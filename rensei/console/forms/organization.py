"""The forms of an organization."""

from django import forms

from rensei.console.forms.base import RefusableForm, id_field


class OrganizationForm(RefusableForm):
    """The name and the logo letter of an organization."""

    name = forms.CharField(max_length=120)
    mark = forms.CharField(
        label="Logo letter",
        max_length=2,
        required=False,
        help_text="One or two letters beside the name. Empty: the first letter of the name.",
    )


class NewOrganizationForm(RefusableForm):
    """A new organization."""

    name = forms.CharField(max_length=120)
    slug = id_field(fallback="organization")
