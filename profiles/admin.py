"""Admin pages of profiles. They are read-only: only their organization changes them."""

from django.contrib import admin
from django.http import HttpRequest

from profiles.models import ModelProfile


@admin.register(ModelProfile)
class ModelProfileAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("public_id", "org", "provider", "model_id", "scope", "project", "is_default", "updated_at")
    list_filter = ("provider", "scope", "is_default")
    list_select_related = ("org", "project")
    search_fields = ("public_id", "name", "org__slug", "model_id")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: ModelProfile | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ModelProfile | None = None) -> bool:
        return False
