"""Admin pages of runs: their states and decisions. Inputs and outputs belong to the organization and are not shown."""

from typing import Any

from django.contrib import admin
from django.db.models import FloatField, QuerySet
from django.db.models.functions import Cast
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from billing.ledger.admin import CappedPaginator
from rensei.core.money import dollars
from rensei.dispatch.models import Attempt, Run, RunQuerySet
from rensei.orgs.audited_admin import ReadOnlyAdmin

NAMES = ("profile_id", "provider", "model_id", "served_model_id")


class AttemptInline(admin.TabularInline):  # type: ignore[type-arg]
    """The calls of a run, with the provider's request ids and errors."""

    model = Attempt
    can_delete = False
    extra = 0
    fields = (
        *("id", "number", "state", "credential_id", "provider_request_id", "error_code"),
        *("started_at", "finished_at"),
    )
    readonly_fields = fields
    ordering = ["number"]

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.display(description="Error")
    def error_code(self, attempt: Attempt) -> str:
        return str(attempt.error["code"]) if attempt.error else ""


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin):
    paginator = CappedPaginator
    list_display = ["id", "created_at", "org", "state", "auth_mode", "served_model_id", "amount_usd", "error_code"]
    list_filter = ["state", "auth_mode"]
    list_select_related = ["org"]
    search_fields = ["=id", "org__slug"]
    search_help_text = "The exact id of a run, or an organization's slug"
    show_full_result_count = False
    ordering = ["-id"]
    inlines = [AttemptInline]
    fieldsets = [
        (None, {"fields": ["id", "org", "project", "created_by", "state", "stopped_by"]}),
        ("Decision", {"fields": [*NAMES, "auth_mode", "payer", "credential_id", "pool", "host"]}),
        ("Cost", {"fields": ["amount_usd", "billed", "estimated", "attempt_count"]}),
        ("Times", {"fields": ["created_at", "started_at", "finished_at", "deadline_at", "lease_owner", "lease_until"]}),
    ]
    readonly_fields = ["stopped_by", "amount_usd"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        """Defer the outputs and other long fields, which these pages do not show."""
        runs = super().get_queryset(request)
        assert isinstance(runs, RunQuerySet)
        return runs.listed().defer("metadata")

    @admin.display(description="Cost, USD", ordering=Cast("amount_picodollars", FloatField()))
    def amount_usd(self, run: Run) -> str | None:
        return dollars(run.amount_picodollars)

    @admin.display(description="Error")
    def error_code(self, run: Run) -> str:
        return str(run.error["code"]) if run.error else ""

    @admin.display(description="Error")
    def stopped_by(self, run: Run) -> SafeString | str:
        if not run.error:
            return ""
        return format_html("<code>{}</code> {}", run.error["code"], run.error["detail"])
