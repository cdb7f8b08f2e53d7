"""REST: how a machine without a token requests one."""

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from rensei.core.api import ANONYMOUS_BODY_LIMIT, CamelSerializer, read_body
from rensei.core.json_fields import NAME, Text
from rensei.core.proxies import client_address
from rensei.core.secret import Secret
from rensei.core.views import Endpoint
from rensei.orgs.row_limits import LimitReached
from rensei.tokens import device_codes
from rensei.tokens.device_codes import DeviceCodeInvalid, DeviceCodePending


class DeviceCodes(Endpoint):
    authentication_classes = ()
    body_limit = ANONYMOUS_BODY_LIMIT
    permission_classes = [AllowAny]
    throttle_scope = "sensitive"

    class Body(CamelSerializer):
        host_name = Text(NAME, max_length=120)

    class Answer(CamelSerializer):
        device_code = serializers.CharField(
            source="device_code.reveal", help_text="The machine's secret, which fetches the token"
        )
        user_code = serializers.CharField(help_text="Shown to the person, such as BCDF-GHJK")
        verification_uri = serializers.URLField()
        verification_uri_complete = serializers.URLField()
        expires_in = serializers.IntegerField(help_text="Seconds")
        interval = serializers.IntegerField(help_text="Seconds between two fetches")

    @extend_schema(responses={201: Answer})
    def post(self, request: Request) -> Response:
        """
        Ask for a code with which a machine is signed in.

        The machine shows `userCode`, and a person who is signed in approves it at `verificationUri`. Open to
        everyone, a few times a minute from one address.
        """
        codes = device_codes.ask(**read_body(self.Body, request), address=client_address(request))
        return Response(self.Answer(codes).data, status=status.HTTP_201_CREATED)


class DeviceCodeToken(Endpoint):
    authentication_classes = ()
    body_limit = ANONYMOUS_BODY_LIMIT
    permission_classes = [AllowAny]
    refusals = {"POST": (DeviceCodePending, DeviceCodeInvalid, LimitReached)}

    class Body(CamelSerializer):
        device_code = serializers.CharField(max_length=100)

    class Answer(CamelSerializer):
        class Machine(CamelSerializer):
            id = serializers.CharField()
            name = serializers.CharField()

        class Organization(CamelSerializer):
            id = serializers.CharField()
            slug = serializers.CharField()
            name = serializers.CharField()

        class Person(CamelSerializer):
            email = serializers.EmailField()

        token = serializers.CharField(source="secret.reveal", help_text="Shown only now")
        token_id = serializers.CharField(source="token.id")
        host = Machine()
        org = Organization(source="host.org")
        user = Person(source="host.owner")

    def post(self, request: Request) -> Response:
        """Fetch the token of an approved machine, once. Until then the answer is DEVICE_CODE_PENDING."""
        device_code = Secret(read_body(self.Body, request)["device_code"])
        grant = device_codes.fetch_token(device_code=device_code, address=client_address(request))
        return Response(self.Answer(grant).data)
