"""Admin pages: the audits of `manage.py audit_ledger` (read only), and the system's access policy."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from billing.integrity.differences import Difference
from catalog.admin_forms import current_entries, labelled
from catalog.providers import PROVIDERS
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import FieldError

# The import registers the page of runs in the admin.
from rensei.dispatch import runs_admin  # noqa: F401
from rensei.dispatch.admission import policy_preview
from rensei.dispatch.admission.policy_preview import Outcome, Prediction
from rensei.dispatch.models import LedgerAudit
from rensei.orgs.audited_admin import ReadOnlyAdmin, operator
from rensei.policies.models import AccessPolicy
from rensei.policies.services import Matrix, set_system_policy

CHANGES_SHOWN = 20


@admin.register(LedgerAudit)
class LedgerAuditAdmin(ReadOnlyAdmin):
    list_display = ["ran_at", "difference_count", "seconds"]
    fields = ["ran_at", "seconds", "difference_count", "differences"]
    readonly_fields = ["differences"]
    ordering = ["-ran_at"]

    @admin.display(description="First differences")
    def differences(self, audit: LedgerAudit) -> SafeString:
        return format_html_join("\n", "<div>{}</div>", ((str(Difference(**each)),) for each in audit.first_differences))


class SystemPolicyForm(forms.ModelForm):  # type: ignore[type-arg]
    """
    Edit the system's policy: what is ticked is denied. If it changes a profile's outcome, it must be sent twice.

    An Allow, which only the API can store, has no checkbox and stays as it is, unless its mode is denied here.
    """

    denied = forms.MultipleChoiceField(
        label="Denied",
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="Nothing ticked: everything is allowed. What a change would do to the profiles of all organizations "
        "is said before it is saved.",
    )
    confirmed = forms.CharField(required=False, widget=forms.HiddenInput)

    class Meta:
        model = AccessPolicy
        fields = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        matrix: Matrix = self.instance.matrix
        field = self.fields["denied"]
        assert isinstance(field, forms.MultipleChoiceField)
        field.choices = _cells(matrix)
        self.initial["denied"] = [
            _cell(row, mode) for row, rules in matrix.items() for mode in rules if _denies(rules[mode])
        ]

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if "denied" not in cleaned:
            return cleaned
        matrix = _matrix(cleaned["denied"], before=self.instance.matrix)
        if cleaned.get("confirmed") != _fingerprint(matrix):
            try:
                changes = policy_preview.system_changes(matrix)
                first = list(islice(changes, CHANGES_SHOWN))
            except FieldError as refusal:
                self.add_error("denied", [error["detail"] for error in refusal.errors])
                return cleaned
            if first:
                self.data = _with(self.data, confirmed=_fingerprint(matrix))
                self.add_error("denied", _warnings(first, others=sum(1 for _ in changes)))
                return cleaned
        self.instance.matrix = matrix
        return cleaned


def _cells(matrix: Matrix) -> list[tuple[str, list[tuple[str, str]]]]:
    """The checkboxes: a cell for each mode of each row."""
    return [(label, [(_cell(row, mode), mode.label) for mode in AuthMode]) for row, label in _rows(matrix).items()]


def _rows(matrix: Matrix) -> dict[str, str]:
    """Label a row for all models, for each provider, and for each current model or one that has a rule."""
    rows = {"*": "All models"} | {spec.id: f"All of {spec.display_name}" for spec in PROVIDERS.values()}
    rows |= dict(labelled(current_entries()))
    return rows | {row: row for row in matrix if row not in rows}


def _cell(row: str, mode: str) -> str:
    return f"{mode}:{row}"


def _denies(rule: Mapping[str, bool]) -> bool:
    return rule.get("allowed") is False


def _matrix(denied: Iterable[str], *, before: Matrix) -> Matrix:
    """The policy that denies these cells, and keeps what is allowed already."""
    matrix: dict[str, dict[str, dict[str, bool]]] = {}
    for row, rules in before.items():
        kept = {mode: dict(rule) for mode, rule in rules.items() if not _denies(rule)}
        if kept:
            matrix[row] = kept
    for cell in denied:
        mode, _, row = cell.partition(":")
        matrix.setdefault(row, {})[mode] = {"allowed": False}
    return matrix


def _with(data: Any, **values: str) -> Any:
    """Copy the values of a form that was sent, with some of them replaced."""
    copied = data.copy()
    for name, value in values.items():
        copied[name] = value
    return copied


def _fingerprint(matrix: Matrix) -> str:
    return hashlib.sha256(json.dumps(matrix, sort_keys=True).encode()).hexdigest()


def _warnings(first: list[Prediction], *, others: int) -> list[str]:
    """List what a policy would change, and explain how to confirm it."""
    lines = [
        f"{change.profile.org_id} {change.profile.public_id}"
        f"{f' in {change.project.slug}' if change.project else ''}: {_said(change.before)} → {_said(change.after)}"
        for change in first
    ]
    if others:
        lines.append(f"And {others} more.")
    return [f"Not saved yet. Profiles that would change: {len(first) + others}. Save again to confirm.", *lines]


def _said(outcome: Outcome) -> str:
    return outcome.code or f"runs as {outcome.mode}"


@admin.register(AccessPolicy)
class AccessPolicyAdmin(ReadOnlyAdmin):
    """Operators set the system's policy. Policies of organizations and projects are read-only here."""

    form = SystemPolicyForm
    fields = ["scope", "org", "project", "denied", "confirmed", "updated_at"]
    list_display = ["scope", "org", "project", "updated_at"]
    list_filter = ["scope"]
    list_select_related = ["org", "project"]
    search_fields = ["org__slug", "project__slug"]
    readonly_fields = ["scope", "org", "project", "rules", "updated_at"]

    def get_fields(self, request: HttpRequest, obj: AccessPolicy | None = None) -> Any:
        """Show the stored document on read-only pages: only the system's policy has a form."""
        editable = self.has_add_permission(request) if obj is None else self.has_change_permission(request, obj)
        return self.fields if editable else ["scope", "org", "project", "rules", "updated_at"]

    @admin.display(description="Rules")
    def rules(self, policy: AccessPolicy) -> SafeString | str:
        matrix: Matrix = policy.matrix
        lines = [
            (label, "Allow" if allowed else "Deny", ", ".join(mode.label for mode in modes))
            for row, label in _rows(matrix).items()
            for allowed in (False, True)
            if (modes := [mode for mode in AuthMode if matrix.get(row, {}).get(mode, {}).get("allowed") is allowed])
        ]
        return format_html_join("", "<div>{}: {} {}</div>", lines) or "None, so it denies nothing."

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._is_operator(request) and not AccessPolicy.objects.filter(scope=AccessPolicy.Scope.SYSTEM).exists()

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and obj.scope == AccessPolicy.Scope.SYSTEM and self._is_operator(request)

    def save_model(self, request: HttpRequest, obj: AccessPolicy, form: Any, change: bool) -> None:
        policy = set_system_policy(operator=operator(request), matrix=obj.matrix)
        obj.pk, obj.scope = policy.pk, policy.scope

    def _is_operator(self, request: HttpRequest) -> bool:
        return bool(request.user.is_active and request.user.is_staff and request.user.is_superuser)
