"""The form of the question why a dispatch would be refused."""

from collections.abc import Sequence
from typing import Any

from django import forms

from profiles.models import ModelProfile
from rensei.console.forms.base import RefusableForm
from rensei.orgs.access import Access
from rensei.orgs.models import Project


class WhyForm(RefusableForm):
    """A member, a project, a profile and a pool. Only those who may ask for others choose the member."""

    as_member = forms.EmailField(
        label="Member", required=False, widget=forms.EmailInput(attrs={"list": "members", "autocomplete": "off"})
    )
    profile_id = forms.ChoiceField(label="Profile", required=False)
    project_id = forms.ChoiceField(label="Project", required=False)
    pool = forms.ChoiceField(required=False)

    def __init__(
        self,
        *args: Any,
        access: Access,
        profiles: Sequence[ModelProfile],
        projects: Sequence[Project],
        pools: Sequence[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        choices = {
            "profile_id": [("", "The default one"), *((one.public_id, one.name) for one in profiles)],
            "project_id": [("", "None"), *((one.slug, one.name) for one in projects)],
            "pool": [(name, name) for name in pools],
        }
        for name, values in choices.items():
            field = self.fields[name]
            assert isinstance(field, forms.ChoiceField)
            field.choices = values
        self.fields["as_member"].widget.attrs["placeholder"] = access.user.email
        if not access.sees_everyone:
            del self.fields["as_member"]
