"""Admin pages of runs: their states and decisions. Inputs and outputs belong to the organization and are not shown."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from billing.ledger.admin import CappedPaginator
from rensei.dispatch.models import Attempt, Run, RunQuerySet
from rensei.orgs.audited_admin import ReadOnlyAdmin, ReadOnlyInline, usd

NAMES = ("profile_id", "provider", "model_id", "served_model_id")


class AttemptInline(ReadOnlyInline):
    """The calls of a run, with the provider's request ids and errors."""

    model = Attempt
    fields = (
        *("id", "number", "state", "credential_id", "provider_request_id", "error_code"),
        *("started_at", "finished_at"),
    )
    readonly_fields = fields
    ordering = ["number"]

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
    amount_usd = staticmethod(usd("Cost, USD", "amount_picodollars"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        """Defer the outputs and other long fields, which these pages do not show."""
        runs = super().get_queryset(request)
        assert isinstance(runs, RunQuerySet)
        return runs.listed().defer("metadata")

    @admin.display(description="Error")
    def error_code(self, run: Run) -> str:
        return str(run.error["code"]) if run.error else ""

    @admin.display(description="Error")
    def stopped_by(self, run: Run) -> SafeString | str:
        if not run.error:
            return ""
        return format_html("<code>{}</code> {}", run.error["code"], run.error["detail"])
