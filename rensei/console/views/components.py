"""Every component on one page, for developers of Rensei's pages."""

from typing import Any

from django import forms
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from rensei.console.forms.base import RefusableForm
from rensei.console.snippets import Snippet
from rensei.core.auth_modes import AuthMode
from rensei.dispatch.models import Run
from rensei.orgs.models import User

TRACE = [
    {"mode": AuthMode.BYOK, "verdict": "denied-by-policy", "deniedBy": "project", "code": "", "detail": ""},
    {"mode": AuthMode.METERED, "verdict": "chosen", "code": "", "detail": ""},
    {"mode": AuthMode.SHARED, "verdict": "allowed", "code": "", "detail": ""},
    {"mode": AuthMode.HOST_SESSION, "verdict": "not-in-profile", "code": "", "detail": ""},
    {"mode": AuthMode.LOCAL, "verdict": "not-offered", "code": "", "detail": "No provider offers it yet"},
]
REFUSED_TRACE = [
    {"mode": AuthMode.BYOK, "verdict": "gate-failed", "code": "BYOK_NOT_CONFIGURED", "detail": ""},
    *({"mode": mode, "verdict": "not-in-profile", "code": "", "detail": ""} for mode in list(AuthMode)[1:]),
]


class ExampleForm(RefusableForm):
    """One field of each kind."""

    name = forms.CharField(help_text="How help looks.", widget=forms.TextInput(attrs={"placeholder": "ci"}))
    wrong = forms.CharField(label="A field with a mistake", required=False)
    choice = forms.ChoiceField(label="A choice", choices=[("a", "One"), ("b", "Another")], required=False)
    text = forms.CharField(label="A text", required=False, widget=forms.Textarea(attrs={"rows": 3}))
    tick = forms.BooleanField(label="A box to tick", required=False, help_text="With its own help.")

    def clean_wrong(self) -> str:
        raise forms.ValidationError("Say what is wrong, and what to do.")


@require_safe
@login_required
def components(request: HttpRequest) -> HttpResponse:
    """Show the components to staff; all others receive a 404."""
    assert isinstance(request.user, User)
    if not request.user.is_staff:
        raise Http404
    form = ExampleForm({"name": "", "choice": "b"})
    form.is_valid()
    context: dict[str, Any] = {
        "form": form,
        "states": Run.State.choices,
        "modes": list(AuthMode),
        "trace": TRACE,
        "refused_trace": REFUSED_TRACE,
        "snippets": [
            Snippet("one", "curl", "curl https://rensei.example/api/v1/me"),
            Snippet("two", "CLI", "rensei whoami"),
        ],
        "error": {"code": "PROVIDER_OVERLOADED", "detail": "The provider is overloaded.", "fix": ""},
        "meters": [20, 85, 100],
        "colours": ["canvas", "rail", "surface", "sunken", "text", "text-2", "text-3", "accent", "ok", "warn", "bad"],
    }
    return render(request, "console/components.html", context)
