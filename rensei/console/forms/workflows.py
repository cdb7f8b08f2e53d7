"""The forms of workflows: the document, and the input of a run."""

from collections.abc import Sequence
from typing import Any

from django import forms

from rensei.console.forms.base import RefusableForm
from rensei.core.errors import FieldError
from rensei.core.json_body import read_json
from rensei.orgs.models import Project
from rensei.workflows.reading import WorkflowInvalid


class DocumentForm(RefusableForm):
    """A document. Its faults are shown with their lines."""

    document = forms.CharField(
        strip=False,
        help_text="YAML or JSON. A node alone is a workflow of one.",
        widget=forms.Textarea(
            attrs={"class": "input--mono", "rows": 22, "spellcheck": "false", "autocapitalize": "off", "wrap": "off"}
        ),
    )
    faults: Sequence[dict[str, Any]] = ()

    def show_faults(self, invalid: WorkflowInvalid) -> None:
        """Show each fault with the text of its line."""
        self.refusal = invalid
        lines = [line.rstrip("\r") for line in self.cleaned_data["document"].strip("\ufeff\r\n").split("\n")]
        self.faults = [
            {**fault, "text": lines[fault["line"] - 1].strip() if fault["line"] in range(1, len(lines) + 1) else ""}
            for fault in invalid.errors
        ]


class NewWorkflowForm(DocumentForm):
    """The document of a new workflow, and its project."""

    project = forms.ChoiceField(required=False, help_text="Its default profile and access policy apply.")

    def __init__(self, *args: Any, projects: Sequence[Project], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["project"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = [("", "None"), *((project.slug, project.name) for project in projects)]


class StartForm(RefusableForm):
    """The input of a workflow: a text, or a JSON object."""

    given = forms.CharField(
        label="Input",
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"class": "input--mono", "rows": 5, "spellcheck": "false"}),
    )

    def clean_given(self) -> Any:
        text = self.cleaned_data["given"].replace("\r\n", "\n")
        if not text.strip():
            return None
        if not text.lstrip().startswith("{"):
            return text
        try:
            return read_json(text.encode())
        except FieldError as fault:
            raise forms.ValidationError(
                f"An input that begins with a brace is a JSON object. {fault.detail}"
            ) from fault

    def _field_of(self, pointer: str) -> str:
        return "given" if pointer.startswith("/input") else super()._field_of(pointer)
