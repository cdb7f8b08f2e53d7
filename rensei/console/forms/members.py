"""The form that invites a person."""

from django import forms

from rensei.console.forms.base import RefusableForm
from rensei.orgs.access import Access
from rensei.orgs.models import Role


class InvitationForm(RefusableForm):
    """The address to invite, and its role. Only owners can invite owners."""

    email = forms.EmailField(
        label="Email address", max_length=254, widget=forms.EmailInput(attrs={"autocomplete": "off"})
    )
    role = forms.ChoiceField(initial=Role.MEMBER)

    def __init__(self, *args: object, access: Access, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["role"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [choice for choice in Role.choices if access.role == Role.OWNER or choice[0] != Role.OWNER]
