"""The form to dispatch a run."""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib.humanize.templatetags.humanize import naturaltime

from catalog.models import CatalogEntry
from profiles.models import ModelProfile
from rensei.console.forms.base import RefusableForm
from rensei.orgs.models import Host, Project


class ManyFilesInput(forms.ClearableFileInput):
    allow_multiple_selected = True


class ManyFilesField(forms.FileField):
    """A file field that takes any number of files."""

    widget = ManyFilesInput

    def clean(self, data: Any, initial: Any = None) -> list[Any]:
        return [super(ManyFilesField, self).clean(one, initial) for one in data or []]


class DispatchForm(RefusableForm):
    """A profile and its input. `served` is the model that would answer; without one, no options are offered."""

    profile = forms.ChoiceField()
    text = forms.CharField(
        label="Message",
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 7, "placeholder": "Ask the model something"}),
    )
    system = forms.CharField(
        label="System prompt", required=False, strip=False, widget=forms.Textarea(attrs={"rows": 3})
    )
    images = ManyFilesField(
        required=False, widget=ManyFilesInput(attrs={"accept": "image/png,image/jpeg,image/gif,image/webp"})
    )
    effort = forms.ChoiceField(label="Reasoning Effort", required=False)
    max_tokens = forms.IntegerField(label="Max tokens", required=False, min_value=1)
    context_window = forms.IntegerField(label="Context window", required=False, min_value=1)
    project = forms.ChoiceField(required=False)
    pool = forms.ChoiceField(required=False)
    host = forms.ChoiceField(
        label="Machine", required=False, help_text="A host-session run uses the login on this machine."
    )
    other = forms.ChoiceField(
        label="Compare with",
        required=False,
        help_text="Sends the same request to this profile and compares the answers. You pay for both.",
    )

    def __init__(
        self,
        *args: Any,
        profiles: Sequence[ModelProfile],
        served: CatalogEntry | None,
        projects: Sequence[Project],
        pools: Sequence[str],
        hosts: Sequence[Host],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.served = served
        named = [(profile.public_id, profile.name) for profile in profiles]
        self.choices("profile", named)
        self.choices("other", [("", "No other profile"), *named])
        self.choices("project", [("", "None"), *((project.slug, project.name) for project in projects)])
        self.choices("pool", [(name, name) for name in pools])
        if hosts:
            self.choices("host", [(host.id, f"{host.name}, {_last_seen(host)}") for host in hosts])
        else:
            del self.fields["host"]
        if served and served.effort_levels:
            levels = [(choice["value"], choice["label"]) for choice in served.efforts]
            self.choices("effort", [("", "The profile's"), *levels])
        else:
            del self.fields["effort"]
        if served and not served.capabilities.get("vision"):
            del self.fields["images"]

    def clean_text(self) -> str:
        return unix_lines(self.cleaned_data["text"])

    def clean_system(self) -> str:
        return unix_lines(self.cleaned_data["system"])

    def clean(self) -> dict[str, Any]:
        fields = self.cleaned_data
        if not (fields.get("text") or "").strip() and not fields.get("images"):
            self.add_error("text", "Write a message, or attach an image.")
        return fields


def _last_seen(host: Host) -> str:
    return f"last seen {naturaltime(host.last_seen_at)}" if host.last_seen_at else "never seen"


def unix_lines(text: str) -> str:
    """Replace CRLF, which browsers send, so that the prompt cache is the same as for a program with the same text."""
    return text.replace("\r\n", "\n")
