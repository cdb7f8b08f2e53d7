"""Operators' pages for API tokens."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from rensei.orgs.audited_admin import ReadOnlyAdmin, operator, words
from rensei.tokens.models import ApiToken
from rensei.tokens.services import revoke_tokens


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    """Tokens by their last characters. An operator can revoke a token, but never read it."""

    list_display = ["name", "hint", "member", "org", "last_used_at", "expires_at", "revoked_at"]
    list_filter = ["revoked_at"]
    list_select_related = ["membership__user", "org"]
    search_fields = ["name", "membership__user__email", "org__slug"]
    fields = [
        "name", "hint", "org", "membership", "project", "host", words("Scopes", "scopes"),
        words("Allowed networks", "allowed_networks"), "made_by", "created_at",
        "expires_at", "last_used_at", "last_used_address", "revoked_at",
    ]  # fmt: skip
    actions = ["revoke"]

    @admin.display(ordering="membership__user__email")
    def member(self, token: ApiToken) -> str:
        return token.membership.user.email

    @admin.action(description="Revoke the selected tokens")
    def revoke(self, request: HttpRequest, tokens: QuerySet[ApiToken]) -> None:
        count = revoke_tokens(tokens.select_related("org"), operator=operator(request))
        self.message_user(request, f"Revoked {count} token(s).", messages.SUCCESS)
