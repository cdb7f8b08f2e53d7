"""The form to dispatch an agent."""

import shlex
from collections.abc import Sequence
from typing import Any

from django import forms

from profiles.models import ModelProfile
from rensei.console.forms.base import RefusableForm
from rensei.console.forms.playground import ManyFilesField, unix_lines
from rensei.core.limits import MIB
from rensei.dispatch import agents
from rensei.orgs.models import Project

MONO = "input--mono"
OWN = "own"
GIT_FIELDS = ("git_url", "git_ref", "git_token", "git_username")
KINDS = {OWN: "Your own program", agents.CLAUDE_CODE: "Claude Code"}


class AgentForm(RefusableForm):
    """
    A program and its task. What is wrong with them is said by the function that checks them for REST.

    `kinds` are the programs that can be used now, of `KINDS`.
    """

    profile = forms.ChoiceField()
    pool = forms.ChoiceField()
    kind = forms.ChoiceField(label="Program")
    program = forms.CharField(
        label="Command",
        required=False,
        strip=True,
        help_text="The program and its arguments, as a shell divides them. It starts in /workspace.",
        widget=forms.TextInput(
            attrs={"class": MONO, "placeholder": "python3 agent.py", "autocomplete": "off", "spellcheck": "false"}
        ),
    )
    text = forms.CharField(
        label="Task",
        strip=False,
        help_text="The program reads it from its standard input.",
        widget=forms.Textarea(attrs={"rows": 5, "placeholder": "Write the tests that are missing."}),
    )
    uploads = ManyFilesField(
        label="Files",
        required=False,
        help_text=f"Put into /workspace under their names. At most {agents.FILES_BYTES_MAX // MIB} MiB.",
    )
    git_url = forms.CharField(
        label="Repository",
        required=False,
        strip=True,
        help_text="Cloned into /workspace before the files are put there, in a pool that may reach its host.",
        widget=forms.TextInput(
            attrs={
                "class": MONO,
                "placeholder": "https://github.com/team/project.git",
                "autocomplete": "off",
                "spellcheck": "false",
            }
        ),
    )
    git_ref = forms.CharField(
        label="Ref",
        required=False,
        strip=True,
        help_text="A branch, a tag or a commit. The default branch without one.",
        widget=forms.TextInput(attrs={"class": MONO, "autocomplete": "off", "spellcheck": "false"}),
    )
    git_token = forms.CharField(
        label="Deploy token",
        required=False,
        strip=True,
        help_text="Sealed, and deleted after the run.",
        widget=forms.PasswordInput(attrs={"class": MONO, "autocomplete": "off", "spellcheck": "false"}),
    )
    git_username = forms.CharField(
        label="User of the token",
        required=False,
        strip=True,
        help_text="Only where the host needs one, as GitLab does for its deploy tokens.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    outputs = forms.CharField(
        label="Files to keep",
        required=False,
        initial="out/**",
        help_text="Patterns, one a line: * is a part of a name, ** any number of folders.",
        widget=forms.Textarea(attrs={"rows": 2, "class": MONO, "spellcheck": "false"}),
    )
    max_cost_usd = forms.DecimalField(
        label="Max cost, USD",
        min_value=0,
        max_digits=18,
        max_value=999_999,
        decimal_places=12,
        initial=1,
        help_text="Held until the program has ended. A call that does not fit is not made.",
        widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal"}),
    )
    timeout_seconds = forms.IntegerField(
        label="Time, seconds",
        min_value=1,
        max_value=agents.SECONDS_MAX,
        initial=agents.SECONDS,
        help_text="Then the program is stopped.",
    )
    max_turns = forms.IntegerField(
        label="Max turns",
        required=False,
        min_value=1,
        max_value=agents.CALLS_MAX,
        help_text="After so many, Claude Code ends.",
    )
    env = forms.CharField(
        label="Environment",
        required=False,
        strip=False,
        help_text="Variables, one a line. They are stored with the run.",
        widget=forms.Textarea(
            attrs={"rows": 3, "class": MONO, "placeholder": "STAGE=test", "spellcheck": "false", "autocomplete": "off"}
        ),
    )
    max_tokens = forms.IntegerField(
        label="Max tokens", required=False, min_value=1, help_text="The most that each call may ask for."
    )
    project = forms.ChoiceField(required=False)

    def __init__(
        self,
        *args: Any,
        profiles: Sequence[ModelProfile],
        projects: Sequence[Project],
        pools: Sequence[str],
        kinds: Sequence[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.choices("kind", [(kind, KINDS[kind]) for kind in kinds])
        self.choices("profile", [(profile.public_id, profile.name) for profile in profiles])
        self.choices("project", [("", "None"), *((project.slug, project.name) for project in projects)])
        self.choices("pool", [(name, name) for name in pools])

    def clean_program(self) -> str | list[str]:
        if self.cleaned_data.get("kind") == agents.CLAUDE_CODE:
            return agents.CLAUDE_CODE
        try:
            divided = shlex.split(self.cleaned_data["program"])
        except ValueError as fault:
            raise forms.ValidationError(f"It cannot be divided as a shell does it: {fault}.") from fault
        if not divided:
            raise forms.ValidationError("This field is required.")
        return divided

    def clean_max_turns(self) -> int | None:
        is_claude_code = self.cleaned_data.get("kind") == agents.CLAUDE_CODE
        turns: int | None = self.cleaned_data["max_turns"] if is_claude_code else None
        return turns

    def clean_text(self) -> str:
        return unix_lines(self.cleaned_data["text"])

    def clean_outputs(self) -> list[str]:
        return list(filter(None, map(str.strip, self.cleaned_data["outputs"].splitlines())))

    def clean_env(self) -> dict[str, str]:
        lines = unix_lines(self.cleaned_data["env"]).split("\n")
        pairs = [(number, *line.partition("=")) for number, line in enumerate(lines, start=1) if line.strip()]
        if unclear := [number for number, _, sign, _ in pairs if not sign]:
            raise forms.ValidationError(f"Line {unclear[0]} has no =. Write NAME=value.")
        return {name.strip(): value for _, name, _, value in pairs}

    @property
    def has_repository(self) -> bool:
        """Whether the fields of a repository have something that a person should see."""
        return any(self[name].value() or self[name].errors for name in GIT_FIELDS)

    def repository(self) -> dict[str, str] | None:
        """Return what is to be cloned, as far as the form has it."""
        names = {"url": "git_url", "ref": "git_ref", "token": "git_token", "username": "git_username"}
        given = {name: self.cleaned_data.get(field) for name, field in names.items()}
        return {name: text for name, text in given.items() if text} if given["url"] else None

    def definition(self) -> dict[str, Any]:
        """
        Return the agent of a form that is valid.

        :raises FieldError: for the first invalid part
        """
        fields = self.cleaned_data
        return agents.checked(
            {
                "program": fields["program"],
                "git": self.repository(),
                "files": [agents.given_file(file.name, file.read()) for file in fields["uploads"]],
                "env": fields["env"],
                "outputs": fields["outputs"],
                "maxTurns": fields["max_turns"],
                "timeoutSeconds": fields["timeout_seconds"],
            }
        )
