"""Admin pages: the audits of `manage.py audit_ledger` (read only), and the system's access policy."""

import hashlib
import json
from itertools import islice
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from billing.integrity.differences import Difference
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
    """Edit the system's policy. If it changes the outcome of a profile, it must be sent twice to be saved."""

    confirmed = forms.CharField(required=False, widget=forms.HiddenInput)

    class Meta:
        model = AccessPolicy
        fields = ["matrix"]
        help_texts = {
            "matrix": 'Such as {"*": {"host-session": {"allowed": false}}}. Absent means allowed. What it would do '
            "to the profiles of all organizations is said before it is saved."
        }

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        matrix = cleaned.get("matrix")
        if matrix is None or cleaned.get("confirmed") == _fingerprint(matrix):
            return cleaned
        try:
            changes = policy_preview.system_changes(matrix)
            first = list(islice(changes, CHANGES_SHOWN))
        except FieldError as refusal:
            self.add_error("matrix", [error["detail"] for error in refusal.errors])
            return cleaned
        if first:
            self.data = {**self.data.dict(), "confirmed": _fingerprint(matrix)}  # type: ignore[attr-defined]
            self.add_error("matrix", _warnings(first, others=sum(1 for _ in changes)))
        return cleaned


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
    fields = ["scope", "org", "project", "matrix", "confirmed", "updated_at"]
    list_display = ["scope", "org", "project", "updated_at"]
    list_filter = ["scope"]
    list_select_related = ["org", "project"]
    search_fields = ["org__slug", "project__slug"]
    readonly_fields = ["scope", "org", "project", "updated_at"]

    def get_fields(self, request: HttpRequest, obj: AccessPolicy | None = None) -> Any:
        """Leave `confirmed` out for read-only pages: only the form of the system's policy needs it."""
        editable = self.has_add_permission(request) if obj is None else self.has_change_permission(request, obj)
        return [name for name in self.fields if editable or name != "confirmed"]

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._is_operator(request) and not AccessPolicy.objects.filter(scope=AccessPolicy.Scope.SYSTEM).exists()

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and obj.scope == AccessPolicy.Scope.SYSTEM and self._is_operator(request)

    def save_model(self, request: HttpRequest, obj: AccessPolicy, form: Any, change: bool) -> None:
        policy = set_system_policy(operator=operator(request), matrix=obj.matrix)
        obj.pk, obj.scope = policy.pk, policy.scope

    def _is_operator(self, request: HttpRequest) -> bool:
        return bool(request.user.is_active and request.user.is_staff and request.user.is_superuser)
