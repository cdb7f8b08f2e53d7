"""REST: how a machine without a token requests one."""

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from rensei.core.api import ANONYMOUS_BODY_LIMIT, CamelSerializer
from rensei.core.json_fields import NAME, Text
from rensei.core.proxies import client_address
from rensei.core.secret import Secret
from rensei.tokens import device_codes
from rensei.tokens.device_codes import DeviceCodeInvalid, DeviceCodePending


class DeviceCodes(APIView):
    """
    Request a code. The machine shows `userCode`, and a person who is signed in approves it at `verificationUri`.

    Open to everyone, a few times a minute from one address.
    """

    authentication_classes = ()
    body_limit = ANONYMOUS_BODY_LIMIT
    permission_classes = [AllowAny]
    throttle_scope = "sensitive"

    class Body(CamelSerializer):
        host_name = Text(NAME, max_length=120)

    class Answer(CamelSerializer):
        device_code = serializers.CharField(help_text="The machine's secret, which fetches the token")
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
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        asked = device_codes.ask(host_name=body.validated_data["host_name"], address=client_address(request))
        return Response(
            {
                "deviceCode": asked.device_code.reveal(),
                "userCode": asked.user_code,
                "verificationUri": asked.verification_uri,
                "verificationUriComplete": asked.verification_uri_complete,
                "expiresIn": int(device_codes.LIFETIME.total_seconds()),
                "interval": device_codes.POLL_SECONDS,
            },
            status=status.HTTP_201_CREATED,
        )


class DeviceCodeToken(APIView):
    """Fetch the token of a machine that was approved, once. Until then the answer is DEVICE_CODE_PENDING."""

    authentication_classes = ()
    body_limit = ANONYMOUS_BODY_LIMIT
    permission_classes = [AllowAny]
    refusals = {"POST": (DeviceCodePending, DeviceCodeInvalid)}

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

        token = serializers.CharField(help_text="Shown only now")
        token_id = serializers.CharField()
        host = Machine()
        org = Organization()
        user = Person()

    def post(self, request: Request) -> Response:
        """Fetch the token of an approved machine, once. Until then the answer is DEVICE_CODE_PENDING."""
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        let_in = device_codes.fetch_token(
            device_code=Secret(body.validated_data["device_code"]), address=client_address(request)
        )
        host = let_in.host
        return Response(
            {
                "token": let_in.secret.reveal(),
                "tokenId": let_in.token.id,
                "host": {"id": host.id, "name": host.name},
                "org": {"id": host.org.id, "slug": host.org.slug, "name": host.org.name},
                "user": {"email": host.owner.email},
            }
        )
