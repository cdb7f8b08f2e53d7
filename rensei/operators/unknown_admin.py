"""Names that this version does not support, in the admin."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from rensei.core.models import UnknownName
from rensei.operators import unknown_names
from rensei.orgs.audited_admin import ReadOnlyAdmin, operator


@admin.register(UnknownName)
class UnknownNameAdmin(ReadOnlyAdmin):
    """The names as they were counted. Marking a name removes it from the front page."""

    list_display = ["kind", "name", "count", "first_seen_at", "last_seen_at", "what_to_do", "marked_by"]
    list_filter = [("marked_at", admin.EmptyFieldListFilter), "kind"]
    search_fields = ["name"]
    ordering = ["-last_seen_at", "-pk"]
    actions = ["mark"]

    @admin.display(description="What to do")
    def what_to_do(self, name: UnknownName) -> str:
        return unknown_names.advice_for(name.kind)

    def has_mark_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("core.change_unknownname")

    @admin.action(description="Mark as seen", permissions=["mark"])
    def mark(self, request: HttpRequest, queryset: QuerySet[UnknownName]) -> None:
        keys = list(queryset.values_list("pk", flat=True))
        count = unknown_names.mark(keys=keys, operator=operator(request))
        self.message_user(request, f"Marked as seen: {count}.", messages.SUCCESS)
