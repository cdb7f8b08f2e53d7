"""Admin pages of the ledger and its roll-ups. No page reads the whole ledger."""

from datetime import date
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.functional import cached_property

from billing.ledger import capacity
from billing.models import CostEvent, UsageDaily
from catalog.providers import PROVIDERS
from rensei.core.clock import database_now
from rensei.core.money import dollars
from rensei.core.periods import end_of, month_before, month_of, start_of
from rensei.core.whole_numbers import WholeSum
from rensei.orgs.audited_admin import ReadOnlyAdmin, fields_with_dollars, usd


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """Stops counting at a limit, because counting a ledger means reading all of it."""

    MOST = 10_000

    @cached_property
    def count(self) -> int:
        assert isinstance(self.object_list, QuerySet)
        return self.object_list.order_by()[: self.MOST].count()


AMOUNT = usd("Amount, USD", "amount_picodollars")
BILLED = usd("Billed, USD", "billed_picodollars")


class LedgerAdmin(ReadOnlyAdmin):
    """A list of amounts with totals of the filtered rows."""

    show_full_result_count = False
    list_select_related = ["org"]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        context = getattr(response, "context_data", None) or {}
        if "cl" in context:
            rows = self.rows_to_sum(context["cl"])
            context["summed"] = rows is not None
            if rows is not None:
                sums = {"amount": WholeSum("amount_picodollars"), "billed": WholeSum("billed_picodollars")}
                for name, total in rows.order_by().aggregate(**sums).items():
                    context[f"{name}_usd"] = dollars(total or 0)
        return response

    def rows_to_sum(self, changelist: ChangeList) -> QuerySet[Any] | None:
        """Return rows that add up to the filtered ones. None where that would read a whole ledger."""
        rows: QuerySet[Any] = changelist.queryset
        return rows


class MonthFilter(admin.SimpleListFilter):
    """The last months. Whether a month has lines is not checked, because that would read the whole ledger."""

    title = "month (UTC)"
    parameter_name = "month"
    MONTHS = 13

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        months = [month_of(database_now())]
        while len(months) < self.MONTHS:
            months.append(month_before(months[-1]))
        return [(month.isoformat(), f"{month:%B %Y}") for month in months]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in {value for value, _ in self.lookup_choices}:
            return queryset
        month = date.fromisoformat(str(self.value()))
        return queryset.filter(occurred_at__gte=start_of(month), occurred_at__lt=end_of(month))


class ProviderFilter(admin.SimpleListFilter):
    """All providers, of models and of capacity. Whether a provider has lines is not checked either."""

    title = "provider"
    parameter_name = "provider__exact"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        of_models = [(provider.id, provider.display_name) for provider in PROVIDERS.values()]
        return [*of_models, *capacity.PROVIDER_NAMES.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(provider=self.value()) if self.value() else queryset


@admin.register(CostEvent)
class CostEventAdmin(LedgerAdmin):
    paginator = CappedPaginator
    change_list_template = "admin/billing/ledger.html"
    list_display = [
        "occurred_at",
        AMOUNT,
        BILLED,
        "org",
        "auth_mode",
        "served_model_id",
        "run_id",
        "kind",
        "estimated",
        "id",
    ]
    fields = ["id", *fields_with_dollars(CostEvent)]
    list_filter = ["occurred_at", MonthFilter, "auth_mode", "kind", "billed", "estimated", ProviderFilter]
    search_fields = ["org__slug", "=run_id", "=attempt_id", "=provider_request_id"]
    search_help_text = "Organization's slug, or the exact id of a run, an attempt or a provider request"
    ordering = ["-id"]

    def rows_to_sum(self, changelist: ChangeList) -> QuerySet[Any] | None:
        """Sum from the roll-ups where they support the filter. Otherwise, a period or a search is required."""
        asked = {name: values[-1] for name, values in changelist.get_filters_params().items()}
        if not changelist.query and asked.keys() <= {"auth_mode__exact", "provider__exact"}:
            return UsageDaily.objects.filter(**asked)
        in_a_period = any(name == MonthFilter.parameter_name or name.startswith("occurred_at__") for name in asked)
        return super().rows_to_sum(changelist) if in_a_period or changelist.query else None


@admin.register(UsageDaily)
class UsageDailyAdmin(LedgerAdmin):
    change_list_template = "admin/billing/ledger.html"
    date_hierarchy = "day"
    list_display = [
        "day",
        AMOUNT,
        BILLED,
        "org",
        "auth_mode",
        "served_model_id",
        "project_id",
        "profile_id",
        "calls",
        "unpriced",
    ]
    fields = fields_with_dollars(UsageDaily)
    list_filter = ["day", "auth_mode", "provider"]
    search_fields = ["org__slug", "served_model_id", "project_id", "profile_id"]
    ordering = ["-day", "-id"]
