"""Form fields of the pages for accounts; the services check what is allowed."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from django import forms

from rensei.core.errors import RenseiError
from rensei.orgs.models import Membership


class _Form(forms.Form):
    # The field of a pointer, where it has another name.
    FIELD_OF: ClassVar[Mapping[str, str]] = {}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Labels have no colon.
        self.label_suffix = ""

    def show(self, refusal: RenseiError) -> None:
        """Show an error beside the fields that it names, or above the form."""
        for error in getattr(refusal, "errors", [{"pointer": "", "detail": refusal.detail}]):
            name = error["pointer"].removeprefix("/")
            name = self.FIELD_OF.get(name, name)
            self.add_error(name if name in self.fields else None, error["detail"])


class SetupForm(_Form):
    """The first account and the first organization."""

    FIELD_OF: ClassVar = {"slug": "org_slug"}

    name = forms.CharField(label="Your name", max_length=120)
    email = forms.EmailField(label="Email", max_length=254, widget=forms.EmailInput(attrs={"autocomplete": "username"}))
    password = forms.CharField(
        label="Password",
        strip=False,
        help_text="At least 10 characters.",
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )
    org_name = forms.CharField(label="Organization", max_length=120)
    org_slug = forms.SlugField(
        label="Its ID in addresses",
        max_length=63,
        help_text="Such as acme: small letters, digits, hyphens. It never changes.",
        widget=forms.TextInput(
            attrs={
                "class": "input--mono",
                "autocomplete": "off",
                "data-id-of": "org_name",
                "data-id-prefix": "",
                "data-id-separator": "-",
                "data-id-fallback": "organization",
            }
        ),
    )
    code = forms.CharField(widget=forms.HiddenInput)


class DetailsForm(_Form):
    """A person's own name, and which mails they get."""

    name = forms.CharField(
        label="Your name", max_length=120, required=False, widget=forms.TextInput(attrs={"autocomplete": "name"})
    )
    is_mailed_decisions = forms.BooleanField(
        label="Answers to requests for metered",
        required=False,
        help_text="Of organizations that you manage, and to your own requests.",
    )


class NewAccountForm(_Form):
    """The account of an invited person. The address is the invitation's."""

    name = forms.CharField(label="Your name", max_length=120, widget=forms.TextInput(attrs={"autocomplete": "name"}))
    password = forms.CharField(
        label="Choose a password",
        strip=False,
        help_text="At least 10 characters.",
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )


class DeviceCodeForm(_Form):
    """The code that a machine shows."""

    code = forms.CharField(
        label="Code",
        max_length=20,
        help_text="Such as BCDF-GHJK, from the machine's terminal.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "characters", "spellcheck": "false"}),
    )


class DeviceAnswerForm(_Form):
    """The organization for which a machine is approved."""

    organization = forms.ChoiceField(label="Organization")

    def __init__(self, *args: Any, memberships: Iterable[Membership], **options: Any) -> None:
        super().__init__(*args, **options)
        field = self.fields["organization"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [(membership.org.slug, membership.org.name) for membership in memberships]
