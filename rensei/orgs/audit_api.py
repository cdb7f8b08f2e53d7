"""REST: the audit log of the organization."""

from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet
from rest_framework import serializers

from rensei.core.api import CamelSerializer
from rensei.core.errors import FieldError
from rensei.core.json_fields import JSONDocument, anything
from rensei.core.lists import Filters
from rensei.orgs import audit_log
from rensei.orgs.permissions import MembersRead
from rensei.orgs.resources import Listed
from rensei.orgs.scopes import READ


class AuditEventFilter(Filters):
    """Which events. The days `from` and `to` are UTC and both included; inside they are words that Python allows."""

    actor = serializers.CharField(required=False, help_text="An email address, or the command that acted")
    action = serializers.CharField(required=False, help_text="Such as integration.rotated")
    object_id = serializers.CharField(required=False)
    words = serializers.CharField(
        required=False,
        source="words",
        max_length=audit_log.WORDS_CHARACTERS,
        help_text=f"Each of its first {audit_log.WORDS_MAX} words occurs in the actor, action, object id or detail",
    )
    first_day = serializers.DateField(required=False, source="first_day", help_text="The first day, in UTC")
    last_day = serializers.DateField(required=False, source="last_day", help_text="The last day, in UTC")

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        fields = super().get_fields()
        days = {"from": fields.pop("firstDay"), "to": fields.pop("lastDay"), "q": fields.pop("words")}
        return {**fields, **days}

    @classmethod
    def select(cls, rows: QuerySet[Any], asked: Mapping[str, Any]) -> QuerySet[Any]:
        wanted = audit_log.Filter(**asked)
        if wanted.first_day and wanted.last_day and wanted.first_day > wanted.last_day:
            raise FieldError(pointer="/query/from", reason="`from` is later than `to`. Give the earlier day first.")
        return audit_log.narrow(rows, wanted)


class AuditEventAnswer(CamelSerializer):
    """Who did what to which object, from where."""

    id = serializers.IntegerField()
    occurred_at = serializers.DateTimeField()
    actor = serializers.CharField(help_text="Email address of the person, or the command that acted")
    token_id = serializers.CharField(allow_blank=True, help_text="The token that was used; empty for a browser")
    action = serializers.CharField(help_text="Such as integration.rotated")
    object_id = serializers.CharField()
    detail = JSONDocument("AuditDetail", anything("What changed, which differs by action; never a secret."))
    address = serializers.CharField(allow_null=True, help_text="The IP address that it came from")


class AuditEvents(Listed):
    permission_classes = [MembersRead]
    scopes = {"GET": READ}
    does = {"GET": "List the audit log, newest first, for owners, admins and auditors."}
    Answer = AuditEventAnswer
    Filter = AuditEventFilter
    rows = staticmethod(audit_log.events)
