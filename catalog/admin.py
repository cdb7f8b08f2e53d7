"""The admin pages of the catalog, and the few values that operators add or change there."""

from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import ForeignKey
from django.http import HttpRequest
from django.utils import timezone

from catalog.datafile import read_all
from catalog.facts import check_capabilities, check_effort_levels
from catalog.models import CatalogEntry, CatalogSetting, Price
from catalog.providers import PROVIDERS
from rensei.audit.record import record_operator
from rensei.core.errors import FieldError
from rensei.core.token_classes import OF_TOKENS
from rensei.orgs.audited_admin import operator


class EntryForm(forms.ModelForm):  # type: ignore[type-arg]
    """A platform entry that is not in the data files."""

    provider = forms.ChoiceField(choices=lambda: [(spec.id, spec.display_name) for spec in PROVIDERS.values()])

    def clean(self) -> dict[str, Any]:
        values = super().clean() or {}
        capabilities, levels = values.get("capabilities") or {}, values.get("effort_levels") or []
        offered = [mode.value for mode in PROVIDERS[values["provider"]].auth_modes] if "provider" in values else []
        if unknown := [mode for mode in values.get("auth_modes") or [] if mode not in offered]:
            self.add_error("auth_modes", f"The provider does not offer {unknown[0]}. It offers {', '.join(offered)}.")
        try:
            check_capabilities(capabilities)
        except FieldError as refusal:
            self.add_error("capabilities", refusal.detail)
            return values
        try:
            if levels:
                check_effort_levels(levels, capabilities)
        except FieldError as refusal:
            self.add_error("effort_levels", refusal.detail)
        return values


@admin.register(CatalogEntry)
class CatalogEntryAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """
    All entries. Those from the data files and of organizations are read-only here.

    The next load would undo a change to the former, and the latter belong to their organization.
    """

    form = EntryForm
    list_display = ("model_id", "display_name", "provider", "org", "lifecycle", "retires_on", "replaced_by")
    list_filter = ("provider", ("org", admin.EmptyFieldListFilter))
    list_select_related = ("org",)
    search_fields = ("model_id", "display_name", "org__slug")
    ordering = ("provider", "model_id")
    exclude = ("org", "created_at")

    @admin.display(description="lifecycle")
    def lifecycle(self, entry: CatalogEntry) -> str:
        return str(entry.lifecycle_on(timezone.now().date()).label)

    def has_change_permission(self, request: HttpRequest, obj: CatalogEntry | None = None) -> bool:
        return super().has_change_permission(request, obj) and (obj is None or _is_operators_own(obj))

    def has_delete_permission(self, request: HttpRequest, obj: CatalogEntry | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: CatalogEntry, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        verb = "updated" if change else "created"
        _record(request, f"catalog_entry.{verb}", obj.model_id, provider=obj.provider, changed=form.changed_data)


# 2,000 dollars for a million tokens, and 10 cents for a search. Twenty million of each class, the most that is accepted
# as a call's usage, then cost less than 2^63 picodollars, including the factors of region and speed.
TOKEN_PRICE_MAX = 2 * 10**9
PRICES_MAX = {
    **dict.fromkeys((one.in_catalog for one in OF_TOKENS), TOKEN_PRICE_MAX),
    "web_search_picodollars": 10**11,
}


class PriceForm(forms.ModelForm):  # type: ignore[type-arg]
    """A price that begins later, so that it does not contradict runs that are already settled."""

    def clean_effective_from(self) -> Any:
        moment = self.cleaned_data["effective_from"]
        if moment <= timezone.now():
            raise forms.ValidationError("A price begins in the future. Add all its bands before it does.")
        return moment

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or {}
        for name, most in PRICES_MAX.items():
            if (given.get(name) or 0) > most:
                self.add_error(name, f"At most {most}, so that the amount of every call fits into a ledger line.")
        return given


def _per_million(microdollars: int) -> str:
    """Write a price in dollars per million tokens, exactly."""
    return f"{Decimal(microdollars) / 1_000_000:f}"


@admin.register(Price)
class PriceAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Prices are added, and superseded by newer ones. None is changed or deleted."""

    form = PriceForm
    list_display = (
        "entry",
        "effective_from",
        "above_prompt_tokens",
        "input_usd",
        "output_usd",
        "cache_read_usd",
        "cache_write_5m_usd",
        "cache_write_1h_usd",
    )
    list_filter = ("entry__provider",)
    list_select_related = ("entry",)
    search_fields = ("entry__model_id",)
    ordering = ("entry__model_id", "-effective_from", "above_prompt_tokens")
    exclude = ("created_at",)

    @admin.display(description="Input, $ per M")
    def input_usd(self, row: Price) -> str:
        return _per_million(row.input_microdollars)

    @admin.display(description="Output, $ per M")
    def output_usd(self, row: Price) -> str:
        return _per_million(row.output_microdollars)

    @admin.display(description="Cache read")
    def cache_read_usd(self, row: Price) -> str:
        return _per_million(row.cache_read_microdollars)

    @admin.display(description="Write, 5 min")
    def cache_write_5m_usd(self, row: Price) -> str:
        return _per_million(row.cache_write_5m_microdollars)

    @admin.display(description="Write, 1 h")
    def cache_write_1h_usd(self, row: Price) -> str:
        return _per_million(row.cache_write_1h_microdollars)

    def formfield_for_foreignkey(self, db_field: ForeignKey[Any, Any], request: HttpRequest, **options: Any) -> Any:
        if db_field.name == "entry":
            # An organization's entry has no price, so the platform's keys are never used for it.
            options["queryset"] = CatalogEntry.objects.filter(org=None).order_by("provider", "model_id")
        return super().formfield_for_foreignkey(db_field, request, **options)

    def has_change_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Price | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Price, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        _record(request, "price.created", obj.entry.model_id, effective_from=obj.effective_from.isoformat())


@admin.register(CatalogSetting)
class CatalogSettingAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The one row of switches."""

    list_display = ("__str__", "redirect_retired")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return super().has_add_permission(request) and not CatalogSetting.objects.exists()

    def has_delete_permission(self, request: HttpRequest, obj: CatalogSetting | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: CatalogSetting, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        _record(request, "catalog_setting.updated", "platform", redirect_retired=obj.redirect_retired)


def _is_operators_own(entry: CatalogEntry) -> bool:
    listed = {(file.provider, model.facts["model_id"]) for file in read_all() for model in file.models}
    return entry.org_id is None and (entry.provider, entry.model_id) not in listed


def _record(request: HttpRequest, action: str, object_id: str, **detail: Any) -> None:
    """Record an operator's change, in the transaction of the admin's request."""
    address = request.META.get("REMOTE_ADDR")
    record_operator(operator(request), action, object_id=object_id, address=address, **detail)
