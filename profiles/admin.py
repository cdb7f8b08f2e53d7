"""Admin pages of profiles. They are read-only: only their organization changes them."""

from django.contrib import admin

from profiles.models import ModelProfile
from rensei.orgs.audited_admin import ReadOnlyAdmin, words


@admin.register(ModelProfile)
class ModelProfileAdmin(ReadOnlyAdmin):
    list_display = ("public_id", "org", "provider", "model_id", "scope", "project", "is_default", "updated_at")
    list_filter = ("provider", "scope", "is_default")
    list_select_related = ("org", "project")
    fields = (
        "public_id", "org", "name", "provider", "model_id", words("Auth modes", "auth_modes"), "effort", "scope",
        "project", "integration", "system", "max_tokens", "prompt_caching", "provider_config", "stored_bytes",
        "is_default", "created_by", "created_at", "updated_at",
    )  # fmt: skip
    search_fields = ("public_id", "name", "org__slug", "model_id")
