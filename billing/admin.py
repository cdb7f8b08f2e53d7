"""The admin pages of billing. Operators change one thing here: whether an organization may use metered."""

from decimal import Decimal
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from billing.ledger import admin as ledger_admin  # noqa: F401
from billing.limits import metered_requests

# Importing the ledger's pages puts them into the admin.
from billing.limits.entitlement import change_entitlement, change_setting, set_metered
from billing.models import BillingSetting, BudgetUsage, Entitlement, SharedSpending, SharedUsage, Statement
from billing.statements import statements
from rensei.core.clock import database_now
from rensei.core.money import dollars, in_picodollars
from rensei.orgs.audited_admin import KeptAdmin, ReadOnlyAdmin, operator, page_context, usd
from rensei.orgs.models import SpendCap


def _dollars_field(label: str, *, help_text: str, required: bool = False) -> forms.DecimalField:
    # An amount of a column is at most 2^63 picodollars.
    return forms.DecimalField(
        label=label, required=required, min_value=0, max_value=9_000_000, decimal_places=12, help_text=help_text
    )


def _action_of(request: HttpRequest) -> str:
    """The action in the address of a page for one organization."""
    match = request.resolver_match
    return str(match.kwargs["action"]) if match else ""


class DollarsForm(forms.ModelForm):  # type: ignore[type-arg]
    """Amounts are entered in dollars and stored in picodollars. `in_dollars` names the column of each such field."""

    in_dollars: ClassVar[dict[str, str]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, column in self.in_dollars.items():
            amount = dollars(getattr(self.instance, column))
            self.initial[name] = None if amount is None else Decimal(amount)

    def changes(self) -> dict[str, Any]:
        """Return the changed values by the name of the model's field."""
        changed = {name: self.cleaned_data[name] for name in self.changed_data}
        for name, column in self.in_dollars.items():
            if name in changed:
                amount: Decimal | None = changed.pop(name)
                changed[column] = in_picodollars(amount)
        return changed


class MeteredBudgetForm(forms.Form):
    """The budget that is asked for before metered is enabled."""

    monthly_budget_usd = _dollars_field(
        "Monthly budget, USD",
        help_text="The most that metered runs may cost in a UTC month. Empty: the budgets stay as they are.",
    )


class EntitlementForm(DollarsForm):
    monthly_budget_usd = _dollars_field(
        "Monthly budget, USD", help_text="The most that metered runs may cost in a UTC month. Empty: no budget."
    )
    shared_usd_per_day = _dollars_field(
        "Shared runs, USD per day",
        help_text="The most that shared runs may cost the platform in a UTC day. Empty: the platform's default.",
    )

    in_dollars: ClassVar[dict[str, str]] = {
        "monthly_budget_usd": "monthly_budget_picodollars",
        "shared_usd_per_day": "shared_picodollars_per_day",
    }

    class Meta:
        model = Entitlement
        fields = ["metered_enabled", "monthly_budget_usd", "shared_runs_per_day", "shared_usd_per_day", "runs_at_once"]


@admin.register(Entitlement)
class EntitlementAdmin(KeptAdmin):
    form = EntitlementForm
    list_display = [
        "org", "metered_enabled", "metered_requested_at", "monthly_budget_usd", "shared_runs_per_day", "buttons"
    ]  # fmt: skip
    list_filter = ["metered_enabled", ("metered_requested_at", admin.EmptyFieldListFilter)]
    list_select_related = ["org"]
    search_fields = ["org__slug", "org__name"]
    ordering = ["org__slug"]
    fields = [
        "org", "metered_enabled", "metered_request", "monthly_budget_usd", "shared_runs_per_day", "shared_usd_per_day",
        "runs_at_once", "updated_at",
    ]  # fmt: skip
    readonly_fields = ["org", "metered_request", "updated_at"]
    actions = ["enable_metered", "disable_metered", "decline_metered", "close_statements"]

    @admin.display(description="Monthly budget, USD", ordering="monthly_budget_picodollars")
    def monthly_budget_usd(self, row: Entitlement) -> str | None:
        return dollars(row.monthly_budget_picodollars)

    @admin.display(description="")
    def buttons(self, row: Entitlement) -> SafeString:
        """What is done to one organization: the same pages as of the actions."""
        wanted = [("disable_metered", "Disable…")] if row.metered_enabled else [("enable_metered", "Enable…")]
        if row.metered_requested_at and not row.metered_enabled:
            wanted.append(("decline_metered", "Decline…"))
        ways = [(reverse("admin:billing_entitlement_do", args=[row.pk, name]), label) for name, label in wanted]
        budget = reverse("admin:billing_entitlement_change", args=[row.pk])
        closing = reverse("admin:billing_entitlement_do", args=[row.pk, "close_statements"])
        ways += [(f"{budget}#id_monthly_budget_usd", "Budget"), (closing, "Close statements…")]
        links = format_html_join(
            " ", '<a class="quiet-button" href="{}">{}<span class="visually-hidden"> {}</span></a>',
            ((address, label, row.org) for address, label in ways),
        )  # fmt: skip
        return format_html('<span class="row-buttons">{}</span>', links)

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.do)
        return [path("<str:org_id>/do/<str:action>/", view, name="billing_entitlement_do"), *super().get_urls()]

    def do(self, request: HttpRequest, org_id: str, action: str) -> HttpResponse:
        """Ask for the confirmation of an action for one organization, and carry it out."""
        one = self.get_queryset(request).filter(pk=org_id)
        if action not in self.actions or not one.exists():
            raise Http404
        if not self.has_change_permission(request):
            raise PermissionDenied
        answer: HttpResponse | None = getattr(self, action)(request, one)
        return answer or redirect("admin:billing_entitlement_changelist")

    @admin.display(description="Request for metered")
    def metered_request(self, row: Entitlement) -> str:
        if row.metered_requested_at is None:
            return "None"
        when = f"{row.metered_requested_at:%Y-%m-%d %H:%M} UTC"
        return f"{row.metered_requested_by}, {when}. {row.metered_requested_for}".strip()

    def save_model(self, request: HttpRequest, obj: Entitlement, form: Any, change: bool) -> None:
        if form.changed_data:
            change_entitlement(obj, actor_user=operator(request), **form.changes())

    @admin.action(description="Enable metered", permissions=["change"])
    def enable_metered(self, request: HttpRequest, queryset: QuerySet[Entitlement]) -> HttpResponse | None:
        return self._set_metered(request, queryset, enabled=True)

    @admin.action(description="Disable metered", permissions=["change"])
    def disable_metered(self, request: HttpRequest, queryset: QuerySet[Entitlement]) -> HttpResponse | None:
        return self._set_metered(request, queryset, enabled=False)

    @admin.action(description="Decline requests for metered", permissions=["change"])
    def decline_metered(self, request: HttpRequest, queryset: QuerySet[Entitlement]) -> HttpResponse | None:
        asking = metered_requests.waiting().filter(pk__in=queryset.values("pk"))
        if "confirmed" in request.POST:
            org_ids = list(asking.values_list("org_id", flat=True))
            declined = metered_requests.decline(org_ids=org_ids, operator=operator(request))
            self.message_user(request, f"{declined} request(s) declined.", messages.SUCCESS)
            return None
        context = {
            "entitlements": asking,
        }
        return self._confirm(request, "confirm_decline", "Decline requests for metered", context)

    @admin.action(description="Close statements of past months", permissions=["change"])
    def close_statements(self, request: HttpRequest, queryset: QuerySet[Entitlement]) -> HttpResponse | None:
        org_ids = list(queryset.values_list("org_id", flat=True))
        if "confirmed" in request.POST:
            closed = statements.close(org_ids=org_ids, actor_user=operator(request))
            self.message_user(request, f"{len(closed)} statement(s) closed.", messages.SUCCESS)
            return None
        context = {
            "org_ids": org_ids,
            "months": [
                (org, summary, dollars(summary.total_picodollars))
                for org, summary in statements.closable(org_ids, now=database_now())
            ],
        }
        return self._confirm(request, "confirm_close", "Close statements of past months", context)

    def _confirm(self, request: HttpRequest, template: str, title: str, context: dict[str, Any]) -> HttpResponse:
        """Answer with the page that asks for a confirmation of the action."""
        context |= {
            **page_context(self, request, title),
            "action": request.POST.get("action") or _action_of(request),
            "action_checkbox_name": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, f"admin/billing/entitlement/{template}.html", context)

    def _set_metered(
        self, request: HttpRequest, queryset: QuerySet[Entitlement], *, enabled: bool
    ) -> HttpResponse | None:
        form = MeteredBudgetForm(request.POST if "confirmed" in request.POST else None)
        if not form.is_valid():
            return self._ask(request, queryset, form, enabled=enabled)
        org_ids = list(queryset.values_list("org_id", flat=True))
        amount: Decimal | None = form.cleaned_data["monthly_budget_usd"] if enabled else None
        budget = in_picodollars(amount)
        changed = set_metered(org_ids=org_ids, enabled=enabled, actor_user=operator(request), budget=budget)
        verb = "enabled" if enabled else "disabled"
        already = len(org_ids) - len(changed)
        note = f" {already} had it so already." if already else ""
        self.message_user(request, f"Metered {verb} for {len(changed)} organization(s).{note}", messages.SUCCESS)
        return None

    def _ask(
        self, request: HttpRequest, queryset: QuerySet[Entitlement], form: MeteredBudgetForm, *, enabled: bool
    ) -> HttpResponse:
        verb = "Enable" if enabled else "Disable"
        context = {
            "enabled": enabled,
            "form": form,
            "verb": verb,
            "entitlements": queryset.select_related("org").order_by("org__slug"),
        }
        return self._confirm(request, "confirm_metered", f"{verb} metered", context)


class BillingSettingForm(DollarsForm):
    shared_org_usd_per_day = _dollars_field(
        "Shared runs of an organization, USD per day",
        required=True,
        help_text="The most that they may cost the platform in a UTC day, unless the organization has its own amount.",
    )
    shared_platform_usd_per_day = _dollars_field(
        "All shared runs, USD per day",
        required=True,
        help_text="The most that those of all organizations together may cost the platform in a UTC day.",
    )

    in_dollars: ClassVar[dict[str, str]] = {
        "shared_org_usd_per_day": "shared_org_picodollars_per_day",
        "shared_platform_usd_per_day": "shared_platform_picodollars_per_day",
    }

    class Meta:
        model = BillingSetting
        fields = ["shared_runs_per_day", "shared_org_usd_per_day", "shared_platform_usd_per_day"]


@admin.register(BillingSetting)
class BillingSettingAdmin(KeptAdmin):
    """One row, created by the first visit. The list redirects to it."""

    form = BillingSettingForm
    fields = ["shared_runs_per_day", "shared_org_usd_per_day", "shared_platform_usd_per_day"]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        setting, _ = BillingSetting.objects.get_or_create(pk=1)
        return redirect("admin:billing_billingsetting_change", setting.pk)

    def save_model(self, request: HttpRequest, obj: BillingSetting, form: Any, change: bool) -> None:
        if form.changed_data:
            change_setting(obj, actor_user=operator(request), **form.changes())


@admin.register(Statement)
class StatementAdmin(ReadOnlyAdmin):
    """The closed statements. An action on the entitlements closes open ones."""

    list_display = ["month", "org", usd("Total, USD", "total_picodollars"), "closed_at", "closed_by", "digest"]
    list_select_related = ["org"]
    date_hierarchy = "month"
    search_fields = ["org__slug", "=digest"]
    ordering = ["-month", "org__slug"]


@admin.register(BudgetUsage)
class BudgetUsageAdmin(ReadOnlyAdmin):
    """What metered runs cost in the newest month, and the most that live runs may still cost."""

    list_display = ["org", "month", usd("Used, USD", "used"), usd("Held, USD", "held")]
    fields: ClassVar[Any] = list_display
    list_select_related = ["org"]
    search_fields = ["org__slug"]
    ordering = ["org__slug"]


@admin.register(SpendCap)
class SpendCapAdmin(ReadOnlyAdmin):
    """The caps of API tokens, what their runs cost in the newest month, and the most that live runs may still cost."""

    list_display = [
        "org", "scope_id", usd("Cap, USD", "picodollars"), "period", usd("Used, USD", "used"), usd("Held, USD", "held")
    ]  # fmt: skip
    fields: ClassVar[Any] = [*list_display, "window", "created_at"]
    list_select_related = ["org"]
    search_fields = ["org__slug", "scope_id"]
    ordering = ["org__slug", "scope_id"]


@admin.register(SharedUsage)
class SharedUsageAdmin(ReadOnlyAdmin):
    list_display = ["day", "org", "used", "held"]
    list_filter = ["day"]
    list_select_related = ["org"]
    search_fields = ["org__slug"]
    ordering = ["-day", "org__slug"]


@admin.register(SharedSpending)
class SharedSpendingAdmin(ReadOnlyAdmin):
    """What shared runs cost the platform on the newest day, and the most that live runs may still cost."""

    list_display = ["account", "org", "day", usd("Used, USD", "used"), usd("Held, USD", "held")]
    fields: ClassVar[Any] = list_display
    list_select_related = ["org"]
    search_fields = ["org__slug"]
    ordering = ["-day", "account"]
