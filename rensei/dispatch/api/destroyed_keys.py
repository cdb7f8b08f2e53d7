"""REST: an owner destroys the organization's data keys."""

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from integrations.vault.destruction import NothingToDestroy
from integrations.vault.errors import CredentialUnreadable
from rensei.core.api import CamelSerializer
from rensei.dispatch import key_destruction
from rensei.dispatch.receipts import ReceiptKeyUnavailable
from rensei.orgs.access import caller
from rensei.orgs.permissions import OwnersWrite
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

    class Readable(CamelSerializer):
        integration = serializers.CharField()
        rule_id = serializers.CharField()
        organization_id = serializers.CharField()
        service_account_id = serializers.CharField()

    class OuterKey(CamelSerializer):
        id = serializers.CharField(help_text="A key of this organization alone, in a key service")
        final_at = serializers.DateTimeField(help_text="When its destruction can no longer be undone there")

    class Backups(CamelSerializer):
        made_before = serializers.DateTimeField()
        kept_until = serializers.DateTimeField(allow_null=True, help_text="Null: how long they are kept is not known")
        open_until = serializers.DateTimeField(
            allow_null=True, help_text="Until when one could open something; with an outer key of its own, its end"
        )

    organization = serializers.CharField()
    slug = serializers.CharField()
    destroyed_at = serializers.DateTimeField()
    ordered_by = serializers.CharField()
    data_keys = DataKey(many=True)
    integrations = Connected(many=True)
    still_readable = Readable(many=True, help_text="Ids of federations, which are no secret and are not sealed")
    outer_keys = OuterKey(many=True)
    backups = Backups()
    signature = serializers.CharField(help_text="`manage.py vault check-receipt` says whether it is genuine")


class DestroyKeys(Resource):
    permission_classes = [OwnersWrite]
    scopes = {"POST": GRANT}
    refusals = {"POST": (NothingToDestroy, ReceiptKeyUnavailable, CredentialUnreadable)}
    Body = Destruction
    Answer = DestructionReceipt

    @extend_schema(operation_id="data_keys_destroy", responses={200: DestructionReceipt})
    def post(self, request: Request) -> Response:
        """Destroy the organization's data keys, for good. Only an owner may. Every stored key becomes unreadable."""
        access = caller(request)
        spend_sensitive(access)
        return Response(key_destruction.destroy_keys(access, **self.fields(request)))
