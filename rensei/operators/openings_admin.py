"""Operators' page for the record of openings."""

from typing import Any

from django.contrib import admin
from django.db.models import CharField, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest

from integrations.models import Integration, KeyOpening, PlatformKey
from rensei.operators.audit_admin import OfOrg
from rensei.orgs.audited_admin import ReadOnlyAdmin
from rensei.orgs.models import Org


@admin.register(KeyOpening)
class KeyOpeningAdmin(ReadOnlyAdmin):
    """Each opening of a sealed record, newest first."""

    list_display = ["opened_at", "key", "version", "reason", "organization", "run_id", "actor", "process"]
    list_filter = ["reason", ("opened_at", admin.DateFieldListFilter), OfOrg]
    # The whole id or address, so that an index finds it among millions.
    search_fields = ["record_id__exact", "run_id__exact", "actor__exact", "token_id__exact"]
    search_help_text = "The id of a key, a run or a token, or the email of a person"
    date_hierarchy = "opened_at"
    ordering = ["-opened_at", "-id"]
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """An opening has plain ids, so the names of the organization and of the key are read beside it."""
        org = Org.objects.filter(pk=OuterRef("org_id")).values("slug")
        own = Integration.objects.filter(pk=OuterRef("record_id")).values("name")
        pool = PlatformKey.objects.filter(pk=OuterRef("record_id")).values("name")
        rows: QuerySet[Any] = (
            super()
            .get_queryset(request)
            .annotate(
                org_slug=Subquery(org),
                key_name=Coalesce(Subquery(own), Subquery(pool), "record_id", output_field=CharField()),
            )
        )
        return rows

    @admin.display(ordering="record_id")
    def key(self, opening: Any) -> str:
        return str(opening.key_name)

    @admin.display(ordering="org_slug")
    def organization(self, opening: Any) -> str | None:
        slug: str | None = opening.org_slug
        return slug
