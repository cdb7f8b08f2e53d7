"""The admin pages of the catalog, and the few values that operators add or change there."""

from decimal import Decimal
from typing import Any

from django.contrib import admin
from django.db.models import ForeignKey
from django.http import HttpRequest
from django.utils import timezone

from catalog.admin_forms import FLAG_LABELS, THINKING_LABELS, EntryForm, PriceForm, current_entries, usd_name
from catalog.datafile import read_all
from catalog.models import CatalogEntry, CatalogSetting, Identity, Price
from rensei.audit.record import record_operator
from rensei.core.money import dollars
from rensei.core.token_classes import TOKEN_CLASSES
from rensei.orgs.audited_admin import AuditedAdmin, operator, words


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

    def get_fields(self, request: HttpRequest, obj: CatalogEntry | None = None) -> Any:
        """List the form's fields or, for an entry that is only read here, the stored ones."""
        if obj is None or self.has_change_permission(request, obj):
            return [*EntryForm.base_fields]
        stored = [one.name for one in CatalogEntry._meta.fields if one.name not in {"id", "org", "created_at"}]  # noqa: SLF001
        in_words: dict[str, Any] = {
            "auth_modes": words("Auth modes", "auth_modes"),
            "effort_levels": words("Effort levels", "effort_levels"),
            "capabilities": "capabilities_in_words",
        }
        return [in_words.get(name, name) for name in stored]

    @admin.display(description="Capabilities")
    def capabilities_in_words(self, entry: CatalogEntry) -> str:
        """Name what the form has as checkboxes."""
        stored = entry.capabilities
        named = [label for flag, label in FLAG_LABELS.items() if stored.get(flag)]
        if tokens := stored.get("minCacheTokens"):
            named.append(f"Shortest cached prompt: {tokens:,} tokens")
        named += [
            f"Thinking: {THINKING_LABELS[kind].lower()}" for kind in (stored.get("thinking") or {}).get("types", [])
        ]
        return "\n".join(named) or "None known"

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

    def get_fields(self, request: HttpRequest, obj: Price | None = None) -> Any:
        fields = ["entry", "effective_from", "above_prompt_tokens"]
        fields += [usd_name(one.price) for one in TOKEN_CLASSES] + ["source"]
        return fields if obj else [*fields, "confirmed"]

    @admin.display(description="Web search, $")
    def web_search_usd(self, row: Price) -> str | None:
        return dollars(row.web_search_picodollars)

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
            options["queryset"] = current_entries()
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


@admin.register(Identity)
class IdentityAdmin(AuditedAdmin):
    """What answers have shown. Deleting a row lifts the block of a policy from an entry, until the next such answer."""

    list_display = ("model_id", "answered_by", "org", "run_id", "seen_at")
    list_filter = ("provider",)
    list_select_related = ("org",)
    search_fields = ("model_id", "answered_by", "org__slug")
    ordering = ("-seen_at",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Identity | None = None) -> bool:
        return False


def _is_operators_own(entry: CatalogEntry) -> bool:
    listed = {(file.provider, model.facts["model_id"]) for file in read_all() for model in file.models}
    return entry.org_id is None and (entry.provider, entry.model_id) not in listed


def _record(request: HttpRequest, action: str, object_id: str, **detail: Any) -> None:
    """Record an operator's change, in the transaction of the admin's request."""
    address = request.META.get("REMOTE_ADDR")
    record_operator(operator(request), action, object_id=object_id, address=address, **detail)
