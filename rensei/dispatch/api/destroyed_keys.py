"""REST: an owner destroys the organization's data keys."""

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from integrations.vault.destruction import NothingToDestroy
from rensei.core.api import CamelSerializer
from rensei.dispatch import key_destruction
from rensei.dispatch.receipts import ReceiptKeyUnavailable
from rensei.orgs.access import caller
from rensei.orgs.permissions import ManagersWrite
from rensei.orgs.resources import Resource
from rensei.orgs.scopes import GRANT
from rensei.tokens.throttling import spend_sensitive


class Destruction(CamelSerializer):
    """What an owner types to destroy the keys."""

    confirm = serializers.CharField(max_length=63, help_text="The organization's ID, typed again")


class DestructionReceipt(CamelSerializer):
    """A signed receipt: what was destroyed, when, by whose order, and what could still open it."""

    class DataKey(CamelSerializer):
        id = serializers.CharField()
        version = serializers.IntegerField()
        wrapped_by = serializers.CharField(help_text="The outer key")

    class Connected(CamelSerializer):
        id = serializers.CharField()
        key_hint = serializers.CharField()

    class Backups(CamelSerializer):
        made_before = serializers.DateTimeField()
        kept_until = serializers.DateTimeField(allow_null=True, help_text="Null: how long they are kept is not known")

    organization = serializers.CharField()
    slug = serializers.CharField()
    destroyed_at = serializers.DateTimeField()
    ordered_by = serializers.CharField()
    data_keys = DataKey(many=True)
    integrations = Connected(many=True)
    backups = Backups()
    signature = serializers.CharField(help_text="`manage.py vault check-receipt` says whether it is genuine")


class DestroyKeys(Resource):
    permission_classes = [ManagersWrite]
    scopes = {"POST": GRANT}
    refusals = {"POST": (NothingToDestroy, ReceiptKeyUnavailable)}
    Body = Destruction
    Answer = DestructionReceipt

    @extend_schema(operation_id="data_keys_destroy", responses={200: DestructionReceipt})
    def post(self, request: Request) -> Response:
        """Destroy the organization's data keys, for good. Only an owner may. Every stored key becomes unreadable."""
        access = caller(request)
        key_destruction.require_owner(access)
        spend_sensitive(access)
        return Response(key_destruction.destroy_keys(access, **self.fields(request)))
