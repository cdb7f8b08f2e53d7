"""The admin pages of keys and of the operators' key pools. They never show a key, nor sealed bytes."""

from datetime import UTC
from typing import Any

from django.contrib import admin, messages
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.views.decorators.debug import sensitive_post_parameters

from integrations.admin_forms import FEDERATION_FIELDS, PlatformKeyForm, verdict_of
from integrations.keys import platform
from integrations.models import DataKey, Integration, IssuerKey, KeyCheck, PlatformKey
from integrations.vault import kek_providers, openings_kept, vault
from integrations.vault.errors import VaultFault
from rensei.core.errors import RenseiError
from rensei.orgs.audited_admin import ReadOnlyAdmin, operator


class ShowsOpenings:
    """The page of a key, with the record of its openings."""

    @admin.display(description="Openings")
    def openings(self, key: Integration | PlatformKey) -> str:
        openings_kept.add_to([key], now=timezone.now())
        if key.last_opened_at is None:
            return "Never opened"
        return format_html(
            'Last {} UTC, {} this month: <a href="{}?record_id={}">all that are recorded</a>',
            key.last_opened_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            key.opened_this_month,
            reverse("admin:integrations_keyopening_changelist"),
            key.id,
        )


@admin.register(PlatformKey)
class PlatformKeyAdmin(ShowsOpenings, admin.ModelAdmin[PlatformKey]):
    form = PlatformKeyForm
    list_display = ["name", "provider", "pool", "key_hint", "active", "weight", "state", "key_age", "last_test"]
    list_filter = ["provider", "pool", "active", "health"]
    search_fields = ["name"]
    ordering = ["provider", "pool", "id"]
    actions = ["test_connection"]

    def get_fields(self, request: HttpRequest, obj: PlatformKey | None = None) -> Any:
        given = ["api_key", *FEDERATION_FIELDS.values(), "workspace_id", "force"]
        shown = ["provider", "pool", "name", *given, "model_ids", "max_tokens_cap", "weight", "active"]
        return [*shown, *self.get_readonly_fields(request, obj)[2:]] if obj else shown

    def get_readonly_fields(self, request: HttpRequest, obj: PlatformKey | None = None) -> list[str]:
        """A key is sealed for its provider and pool, so these two cannot change. The server sets the rest."""
        found = [
            "key_hint",
            "secret_version",
            "state",
            "last_test",
            "openings",
            "key_age",
            "created_at",
        ]
        return ["provider", "pool", *found] if obj else []

    @admin.display(description="Health", ordering="health")
    def state(self, key: PlatformKey) -> str:
        if key.health == PlatformKey.Health.QUARANTINED:
            return key.get_health_display()
        pauses = [
            f"{limit or 'all models'} until {end.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
            for limit, end in key.coolings(timezone.now()).items()
        ]
        return f"Cooling down: {', '.join(pauses)}" if pauses else PlatformKey.Health.HEALTHY.label

    @admin.display(description="Key age", ordering="key_created_at")
    def key_age(self, key: PlatformKey) -> str:
        return "" if key.key_age_days is None else f"{key.key_age_days} days"

    @admin.display(description="Last problem")
    def last_test(self, key: PlatformKey) -> str:
        return f"{key.last_error['detail']} {key.last_error['fix']}" if key.last_error else ""

    @admin.action(description="Test Connection", permissions=["change"])
    def test_connection(self, request: HttpRequest, queryset: QuerySet[PlatformKey]) -> None:
        for key in queryset.order_by("id"):
            try:
                verdict = platform.check_platform_key(key, actor=operator(request))
            except RenseiError as refusal:
                self.message_user(request, f"{key}: {refusal.detail}", messages.ERROR)
                continue
            level = messages.SUCCESS if verdict.ok else messages.ERROR
            self.message_user(request, f"{key}: {verdict.message} {verdict.fix}".strip(), level)

    @method_decorator(sensitive_post_parameters("api_key"))
    def changeform_view(self, request: HttpRequest, object_id: str | None = None, *args: Any, **options: Any) -> Any:
        may_save = self.has_change_permission(request) if object_id else self.has_add_permission(request)
        try:
            if request.method == "POST" and may_save:
                # These may be calls, and the page is one transaction. The key to seal with is held for a moment only,
                # so it is fetched after the test, which may take seconds.
                request.verdict = verdict_of(request)  # type: ignore[attr-defined]
                vault.fetch_key(org=None)
            return super().changeform_view(request, object_id, *args, **options)
        except RenseiError as refusal:
            # The vault may refuse to seal. Nothing was saved: the page's transaction was rolled back.
            self.message_user(request, refusal.detail, messages.ERROR)
            return HttpResponseRedirect(request.path)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any) -> Any:
        form: Any = super().get_form(request, obj, change, **options)
        form.verdict = getattr(request, "verdict", None)
        return form

    def save_model(self, request: HttpRequest, obj: PlatformKey, form: Any, change: bool) -> None:
        besides = {"force", *FEDERATION_FIELDS.values()}
        fields = {name: value for name, value in form.cleaned_data.items() if name not in besides}
        if form.verdict is not None and not form.verdict.ok:
            self.message_user(request, f"Saved although the test failed: {form.verdict.message}", messages.WARNING)
        given = {name: fields.pop(name) for name in ("api_key", "federation", "workspace_id")}
        if change:
            # The form has set its workspace on the object, which the stored key is still bound to.
            obj.workspace_id = form.initial["workspace_id"]
            platform.update_platform_key(obj, actor=operator(request), **fields)
            if given["api_key"] is not None or given["federation"] is not None:
                platform.replace_key(obj, actor=operator(request), **given)
        else:
            obj.pk = platform.add_platform_key(actor=operator(request), **given, **fields).pk
            obj.refresh_from_db()

    def delete_model(self, request: HttpRequest, obj: PlatformKey) -> None:
        platform.remove_platform_key(obj, actor=operator(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[PlatformKey]) -> None:
        for key in queryset:
            platform.remove_platform_key(key, actor=operator(request))


@admin.register(Integration)
class IntegrationAdmin(ShowsOpenings, ReadOnlyAdmin):
    """Organizations' own keys: operators can check that they exist, and their status."""

    list_display = ["org", "provider", "name", "key_hint", "status", "tested_at", "is_default", "last_used_at"]
    list_filter = ["provider", "status"]
    list_select_related = ["org"]
    search_fields = ["name", "org__slug"]
    ordering = ["org__slug", "provider", "id"]
    fields = [
        *("id", "org", "provider", "name", "key_hint", "federation", "secret_version", "base_url", "workspace_id"),
        "is_default",
        *("status", "tested_at", "last_used_at", "openings", "key_created_at", "remind_after_days", "reminded_at"),
        *("created_by", "created_at"),
    ]


@admin.register(IssuerKey)
class IssuerKeyAdmin(ReadOnlyAdmin):
    """The keys that sign this server's identity, and when each is used."""

    list_display = ["id", "version", "signs_from", "created_at"]
    ordering = ["-version"]
    fields = ("id", "version", "signs_from", "created_at")


@admin.register(DataKey)
class DataKeyAdmin(ReadOnlyAdmin):
    """Which key-encryption key wraps which data key: needed to decide when an old one can be removed."""

    list_display = ["id", "org", "purpose", "version", "kek_id", "kek_version", "created_at"]
    list_filter = ["purpose", "kek_id"]
    list_select_related = ["org"]
    search_fields = ["org__slug", "kek_id"]
    ordering = ["created_at", "id"]
    fields = ("id", "org", "purpose", "version", "kek_id", "kek_version", "created_at")


@admin.register(KeyCheck)
class KeyCheckAdmin(ReadOnlyAdmin):
    """
    The key-encryption keys that this database has used, and how far a rotation is.

    No key service is called for the page, so a version of the current key that is not the newest is not seen here.
    """

    list_display = ["kek_id", "provider", "data_keys", "versions", "state", "created_at", "emptied_at"]
    ordering = ["created_at", "kek_id"]
    fields = ("kek_id", "provider", "data_keys", "versions", "state", "created_at", "emptied_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[KeyCheck]:
        wrapped = DataKey.objects.filter(kek_id=OuterRef("kek_id")).order_by().values("kek_id")
        rows: QuerySet[KeyCheck] = (
            super()
            .get_queryset(request)
            .annotate(
                data_key_count=Coalesce(Subquery(wrapped.annotate(count=Count("id")).values("count")), 0),
                version_count=Coalesce(
                    Subquery(wrapped.annotate(count=Count("kek_version", distinct=True)).values("count")), 0
                ),
            )
        )
        return rows

    @admin.display(description="Where it is")
    def provider(self, key: KeyCheck) -> str:
        try:
            return kek_providers.holding(key.kek_id).describe()
        except VaultFault:
            return "in no provider that is configured"

    @admin.display(description="Data keys wrapped", ordering="data_key_count")
    def data_keys(self, key: Any) -> int:
        return int(key.data_key_count)

    @admin.display(description="Versions in use")
    def versions(self, key: Any) -> int:
        return int(key.version_count)

    @admin.display(description="State")
    def state(self, key: Any) -> str:
        try:
            if kek_providers.current().current_id() == key.kek_id:
                return "current"
        except VaultFault as fault:
            return str(fault)
        return "to re-wrap: run `vault rotate`" if key.data_key_count else "not needed: see `vault retire`"
