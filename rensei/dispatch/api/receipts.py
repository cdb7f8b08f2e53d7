"""REST: the signed receipt of a run, and the public keys that verify receipts."""

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from rensei.core.api import CamelSerializer
from rensei.core.errors import NotFound
from rensei.core.json_fields import JSONDocument, anything
from rensei.core.views import Endpoint
from rensei.dispatch import receipts
from rensei.dispatch.queries import find_run
from rensei.dispatch.receipts import ReceiptDisagrees, ReceiptKeyUnavailable, ReceiptNotReady
from rensei.orgs.access import caller
from rensei.orgs.permissions import MembersRead
from rensei.orgs.scopes import READ_OR_RUNS

CONTENT = anything("What is signed, as the documentation of receipts lists it. A later version may have more members.")


class ReceiptAnswer(CamelSerializer):
    """A receipt. The signature covers the canonical JSON of everything else."""

    format = serializers.CharField()
    alg = serializers.CharField()
    kid = serializers.CharField(help_text="The id of the public key")
    receipt = JSONDocument("ReceiptContent", CONTENT)
    signature = serializers.CharField(help_text="Ed25519, in base64url")


class ReceiptKeysAnswer(CamelSerializer):
    """Public keys, as RFC 8037 writes them."""

    class Key(CamelSerializer):
        kty = serializers.CharField()
        crv = serializers.CharField()
        x = serializers.CharField()
        alg = serializers.CharField()
        use = serializers.CharField()
        kid = serializers.CharField()
        status = serializers.ChoiceField(choices=["active", "replaced"])

    keys = Key(many=True)


class RunReceipt(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": READ_OR_RUNS}
    refusals = {"GET": (NotFound, ReceiptNotReady, ReceiptDisagrees, ReceiptKeyUnavailable)}

    @extend_schema(responses=ReceiptAnswer)
    def get(self, request: Request, run_id: str) -> Response:
        """Show the signed receipt of a run that has ended. It can be verified without this server."""
        return Response(receipts.receipt_of(find_run(caller(request), run_id)))


class ReceiptKeys(Endpoint):
    authentication_classes = ()
    permission_classes = [AllowAny]

    @extend_schema(responses=ReceiptKeysAnswer, operation_id="receipt_keys")
    def get(self, request: Request) -> Response:
        """List the public keys that verify receipts: the one in use, and those that were replaced."""
        return Response({"keys": receipts.public_keys()})
