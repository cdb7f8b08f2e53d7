"""The base of all forms of the pages, which shows a service's refusal beside the wrong field."""

from typing import Any

from django import forms

from rensei.core.errors import RenseiError

# Refusals that are about one field, without a pointer to it.
FIELD_OF_CODE = {
    "KEY_KIND_REFUSED": "api_key",
    "BASE_URL_REFUSED": "base_url",
    "EFFORT_NOT_SUPPORTED": "effort",
    "MODEL_NOT_IN_CATALOG": "model_id",
    "MODEL_RETIRED": "model_id",
    "NO_ELIGIBLE_POOL": "pool",
    "AGENT_PROGRAM_UNAVAILABLE": "kind",
    "GIT_HOST_NOT_ALLOWED": "git_url",
    "IMAGES_NOT_SUPPORTED": "images",
    "INVALID_IMAGE": "images",
}
FIELD_OF_NAME = {
    "id": "slug",
    "provider_config": "context_window",
    "files": "uploads",
    "input": "text",
    "project_id": "project",
}


def id_field(*, prefix: str = "", separator: str = "-", fallback: str, length: int = 63) -> forms.CharField:
    """The id of a new object: `rensei.js` proposes it from the name, and without scripts an empty one is made of it."""
    attrs = {
        "class": "input--mono",
        "autocomplete": "off",
        "spellcheck": "false",
        "data-id-of": "name",
        "data-id-prefix": prefix,
        "data-id-separator": separator,
        "data-id-fallback": fallback,
    }
    return forms.CharField(
        label="ID",
        required=False,
        max_length=length,
        help_text="Proposed from the name. It never changes, so code can rely on it.",
        widget=forms.TextInput(attrs=attrs),
    )


class RefusableForm(forms.Form):
    """A form that checks the shape of its values. All other checks are made by the service."""

    refusal: RenseiError | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Labels have no colon.
        super().__init__(*args, **{"label_suffix": "", **kwargs})

    @property
    def status(self) -> int:
        """The HTTP status of a page that shows the form."""
        return 422 if self.refusal or (self.is_bound and self.errors) else 200

    def refuse(self, refusal: RenseiError) -> None:
        """Show a refusal beside its field, or above the form."""
        pointed = [(self._field_of(error["pointer"]), error["detail"]) for error in getattr(refusal, "errors", [])]
        if name := FIELD_OF_CODE.get(refusal.code):
            pointed.append((name, refusal.detail))
        placed = [(name, detail) for name, detail in pointed if name in self.fields]
        if not placed or len(placed) < len(pointed):
            self.refusal = refusal
        for name, detail in placed:
            self.add_error(name, detail)

    def choices(self, name: str, choices: Any) -> None:
        """Set the choices of a field."""
        field = self.fields[name]
        assert isinstance(field, forms.ChoiceField)
        field.choices = choices

    def _field_of(self, pointer: str) -> str:
        inner = pointer.strip("/").removeprefix("federation/").removeprefix("agent/")
        first = inner.replace("git/", "git_") if inner.startswith("git/") else inner.partition("/")[0]
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in first)
        return FIELD_OF_NAME.get(name, name)
