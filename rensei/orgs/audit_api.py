"""REST: the audit log of the organization."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from rensei.core.api import CamelSerializer, CursorPages, read_filters
from rensei.core.errors import FieldError
from rensei.core.json_fields import JSONDocument, anything
from rensei.orgs import audit_log
from rensei.orgs.access import caller
from rensei.orgs.permissions import MembersRead
from rensei.orgs.scopes import READ


class AuditEventFilter(CamelSerializer):
    """Which events. The days `from` and `to` are UTC and both included; inside they are words that Python allows."""

    actor = serializers.CharField(required=False, help_text="An email address, or the command that acted")
    action = serializers.CharField(required=False, help_text="Such as integration.rotated")
    object_id = serializers.CharField(required=False)
    words = serializers.CharField(
        required=False, source="words", help_text="Each word occurs in the actor, action, object id or detail"
    )
    first_day = serializers.DateField(required=False, source="first_day", help_text="The first day, in UTC")
    last_day = serializers.DateField(required=False, source="last_day", help_text="The last day, in UTC")

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        fields = super().get_fields()
        days = {"from": fields.pop("firstDay"), "to": fields.pop("lastDay"), "q": fields.pop("words")}
        return {**fields, **days}


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


class AuditEvents(APIView):
    """The audit log, newest first, for owners, admins and auditors."""

    permission_classes = [MembersRead]
    scopes = {"GET": READ}
    pagination_class = CursorPages
    Answer = AuditEventAnswer

    @extend_schema(parameters=[AuditEventFilter])
    def get(self, request: Request) -> Response:
        """List the audit log, newest first, for owners, admins and auditors."""
        audit_log.require_reader(caller(request))
        asked = audit_log.Filter(**read_filters(AuditEventFilter, request))
        if asked.first_day and asked.last_day and asked.first_day > asked.last_day:
            raise FieldError(pointer="/query/from", reason="`from` is later than `to`. Give the earlier day first.")
        return CursorPages.answer(request, audit_log.events(caller(request), asked), self.Answer)
