"""What operators see of the money, and the one thing that they flip: metered, for an organization."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db.models import F, Model, QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse

from billing import services
from billing.models import BillingSetting, CostEvent, Entitlement, SharedUsage, UsageDaily
from rensei.core.money import PICODOLLARS_PER_DOLLAR, dollars
from rensei.orgs.admin import ReadOnlyAdmin
from rensei.orgs.models import User


@admin.register(Entitlement)
class EntitlementAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ["org", "metered_enabled", "shared_runs_per_day", "updated_at"]
    list_filter = ["metered_enabled"]
    list_select_related = ["org"]
    search_fields = ["org__slug", "org__name"]
    ordering = ["org__slug"]
    fields = ["org", "metered_enabled", "shared_runs_per_day", "updated_at"]
    readonly_fields = ["org", "updated_at"]
    actions = ["enable_metered", "disable_metered"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Each organization is made with its row."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Entitlement, form: Any, change: bool) -> None:
        if form.changed_data:
            changes = {name: form.cleaned_data[name] for name in form.changed_data}
            services.change_entitlement(obj, actor_user=operator(request), **changes)

    @admin.action(description="Enable metered", permissions=["change"])
    def enable_metered(self, request: HttpRequest, queryset: QuerySet[Entitlement]) -> HttpResponse | None:
        return self._set_metered(request, queryset, enabled=True)

    @admin.action(description="Disable metered", permissions=["change"])
    def disable_metered(self, request: HttpRequest, queryset: QuerySet[Entitlement]) -> HttpResponse | None:
        return self._set_metered(request, queryset, enabled=False)

    def _set_metered(
        self, request: HttpRequest, queryset: QuerySet[Entitlement], *, enabled: bool
    ) -> HttpResponse | None:
        if "confirmed" not in request.POST:
            return self._ask(request, queryset, enabled=enabled)
        org_ids = list(queryset.values_list("org_id", flat=True))
        changed = services.set_metered(org_ids=org_ids, enabled=enabled, actor_user=operator(request))
        verb = "enabled" if enabled else "disabled"
        already = len(org_ids) - len(changed)
        note = f" {already} had it so already." if already else ""
        self.message_user(request, f"Metered {verb} for {len(changed)} organization(s).{note}", messages.SUCCESS)
        return None

    def _ask(self, request: HttpRequest, queryset: QuerySet[Entitlement], *, enabled: bool) -> HttpResponse:
        verb = "Enable" if enabled else "Disable"
        context = {
            **self.admin_site.each_context(request),
            "title": f"{verb} metered",
            "opts": self.opts,
            "media": self.media,
            "enabled": enabled,
            "verb": verb,
            "action": request.POST["action"],
            "entitlements": queryset.select_related("org").order_by("org__slug"),
            "action_checkbox_name": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/billing/entitlement/confirm_metered.html", context)


@admin.register(BillingSetting)
class BillingSettingAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """One row, which the first visit makes: the list leads straight to it."""

    fields = ["shared_runs_per_day"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        setting, _ = BillingSetting.objects.get_or_create(pk=1)
        return redirect("admin:billing_billingsetting_change", setting.pk)

    def save_model(self, request: HttpRequest, obj: BillingSetting, form: Any, change: bool) -> None:
        if form.changed_data:
            services.change_setting(obj, actor_user=operator(request), **form.cleaned_data)


class LedgerAdmin(ReadOnlyAdmin):
    """A list of money with the totals of what the filters leave."""

    show_full_result_count = False
    list_select_related = ["org"]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        context = getattr(response, "context_data", None) or {}
        if "cl" in context:
            rows = context["cl"].queryset
            context["amount_usd"] = dollars(exact_sum(rows, "amount_picodollars"))
            context["billed_usd"] = dollars(exact_sum(rows, "billed_picodollars"))
        return response

    @admin.display(description="Amount, USD", ordering="amount_picodollars")
    def amount_usd(self, row: CostEvent | UsageDaily) -> str | None:
        return dollars(row.amount_picodollars)

    @admin.display(description="Billed, USD", ordering="billed_picodollars")
    def billed_usd(self, row: CostEvent | UsageDaily) -> str | None:
        return dollars(row.billed_picodollars)


@admin.register(CostEvent)
class CostEventAdmin(LedgerAdmin):
    change_list_template = "admin/billing/ledger.html"
    date_hierarchy = "occurred_at"
    list_display = [
        "id",
        "occurred_at",
        "org",
        "kind",
        "auth_mode",
        "payer",
        "billing_class",
        "served_model_id",
        "run_id",
        "amount_usd",
        "billed_usd",
        "estimated",
    ]
    list_filter = ["occurred_at", "auth_mode", "kind", "billed", "estimated", "provider"]
    search_fields = ["org__slug", "=run_id", "=attempt_id", "=provider_request_id"]
    search_help_text = "Organization's slug, or the exact id of a run, an attempt or a provider request"
    ordering = ["-id"]


@admin.register(UsageDaily)
class UsageDailyAdmin(LedgerAdmin):
    change_list_template = "admin/billing/ledger.html"
    date_hierarchy = "day"
    list_display = [
        "day",
        "org",
        "auth_mode",
        "served_model_id",
        "project_id",
        "profile_id",
        "calls",
        "unpriced",
        "amount_usd",
        "billed_usd",
    ]
    list_filter = ["day", "auth_mode", "provider"]
    search_fields = ["org__slug", "served_model_id", "project_id", "profile_id"]
    ordering = ["-day", "-id"]


@admin.register(SharedUsage)
class SharedUsageAdmin(ReadOnlyAdmin):
    list_display = ["day", "org", "used", "held"]
    list_filter = ["day"]
    list_select_related = ["org"]
    search_fields = ["org__slug"]
    ordering = ["-day", "org__slug"]


def operator(request: HttpRequest) -> User:
    """Name the person whom the admin has let in."""
    assert isinstance(request.user, User)
    return request.user


def exact_sum(rows: QuerySet[Any], column: str) -> int:
    """Add a column up in two parts, because the whole may pass 2^63, where SQLite has no whole numbers left."""
    parts = rows.order_by().aggregate(
        whole=Sum(F(column) / PICODOLLARS_PER_DOLLAR), rest=Sum(F(column) % PICODOLLARS_PER_DOLLAR)
    )
    return (parts["whole"] or 0) * PICODOLLARS_PER_DOLLAR + (parts["rest"] or 0)
