"""Operators' pages for the audit log."""

from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest

from rensei.audit.models import AuditEvent
from rensei.orgs.audited_admin import ReadOnlyAdmin
from rensei.orgs.models import Org


class OfOrg(admin.SimpleListFilter):
    """The events of one organization."""

    title = "organization"
    parameter_name = "org"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[Any, str]]:
        return list(Org.objects.order_by("slug").values_list("pk", "slug"))

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEvent]) -> QuerySet[AuditEvent]:
        return queryset.filter(org_id=self.value()) if self.value() else queryset


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    """The audit log, newest first."""

    list_display = ["occurred_at", "actor", "action", "object_id", "organization", "address"]
    list_filter = ["action", OfOrg]
    search_fields = ["actor", "object_id", "action"]
    date_hierarchy = "occurred_at"
    ordering = ["-id"]
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """An event has the plain id of its organization, so its short name is read beside it."""
        org = Org.objects.filter(pk=OuterRef("org_id"))
        events: QuerySet[Any] = super().get_queryset(request).annotate(org_slug=Subquery(org.values("slug")))
        return events

    @admin.display(ordering="org_slug")
    def organization(self, event: Any) -> str | None:
        slug: str | None = event.org_slug
        return slug
