"""REST endpoints for the providers, and the organization's own keys for them."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from catalog import providers
from integrations.keys import services, shapes
from integrations.models import Integration
from integrations.outbound.destinations import BaseUrlRefused
from integrations.providers.base import KeyKindRefused
from integrations.vault.errors import CredentialUnreadable
from rensei.core.api import CamelSerializer, CursorPages, created
from rensei.core.errors import AlreadyExists, InUse
from rensei.core.json_fields import Text, one_of, whole
from rensei.core.secret import Secret
from rensei.orgs.access import Access, caller
from rensei.orgs.kill_switches import OrgSuspended
from rensei.orgs.permissions import ManagersWrite, MembersRead
from rensei.orgs.scopes import MANAGE, READ, READ_OR_RUNS


class SecretField(Text):
    """A submitted key. It is converted to a `Secret` at once, and is never returned."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            whole(shapes.KEY_SHAPE.pattern),
            write_only=True,
            trim_whitespace=False,
            style={"input_type": "password"},
            **options,
        )

    def run_validation(self, data: Any = serializers.empty) -> Secret:
        return Secret(super().run_validation(data))


class ProviderAnswer(CamelSerializer):
    """A provider that keys can be connected for."""

    id = serializers.CharField()
    display_name = serializers.CharField()
    config_namespace = serializers.CharField()
    auth_modes = serializers.ListField(child=serializers.CharField())
    requires_endpoint = serializers.BooleanField()
    category = serializers.CharField()
    key_page_url = serializers.URLField(help_text="Where people make a key")


class ProviderPage(CamelSerializer):
    """All providers: they fit on one page."""

    next = serializers.URLField(allow_null=True, default=None)
    previous = serializers.URLField(allow_null=True, default=None)
    results = ProviderAnswer(many=True)


class Providers(APIView):
    """The providers that this server supports."""

    permission_classes = [MembersRead]
    scopes = {"GET": READ_OR_RUNS}

    @extend_schema(operation_id="providers_list", responses=ProviderPage)
    def get(self, request: Request) -> Response:
        """List the providers that this server supports."""
        return Response(ProviderPage({"results": list(providers.PROVIDERS.values())}).data)


class ModelName(CamelSerializer):
    """A model that the key may use, as the provider lists it."""

    id = serializers.CharField()
    displayName = serializers.CharField()  # noqa: N815 - stored as it is on the wire


class LastError(CamelSerializer):
    """Why the last test failed, and what to do about it."""

    code = serializers.CharField()
    message = serializers.CharField(source="detail")
    fix = serializers.CharField()


class IntegrationAnswer(CamelSerializer):
    """A connected provider. The key itself is never given out."""

    id = serializers.CharField()
    provider = serializers.CharField()
    name = serializers.CharField()
    key_hint = serializers.CharField(help_text="The kind of the key and its last four characters")
    status = serializers.ChoiceField(choices=Integration.Status.choices)
    tested_at = serializers.DateTimeField(allow_null=True)
    last_error = LastError(allow_null=True, help_text="For owners and admins; null for others")
    models = ModelName(many=True, source="model_list")
    base_url = serializers.CharField(help_text="Empty: the provider's own address")
    workspace_id = serializers.CharField()
    is_default = serializers.BooleanField()
    last_used_at = serializers.DateTimeField(allow_null=True)
    created_at = serializers.DateTimeField()


class IntegrationForMembers(IntegrationAnswer):
    """The same for members who do not manage keys, without the results of key tests."""

    def to_representation(self, instance: Integration) -> dict[str, Any]:
        return {**super().to_representation(instance), "lastError": None}


class NewIntegration(CamelSerializer):
    """A key to connect."""

    provider = Text(one_of(providers.PROVIDERS), max_length=32)
    name = serializers.CharField(max_length=120, allow_blank=True, default="")
    api_key = SecretField()
    base_url = serializers.CharField(allow_blank=True, default="")
    workspace_id = Text(whole(shapes.WORKSPACE_SHAPE.pattern), allow_blank=True, default="")
    is_default = serializers.BooleanField(allow_null=True, default=None)


class IntegrationChange(CamelSerializer):
    """What to change. A new `baseUrl` needs the key again; to replace only the key, rotate it."""

    name = serializers.CharField(max_length=120, required=False)
    base_url = serializers.CharField(allow_blank=True, required=False)
    api_key = SecretField(required=False)
    workspace_id = Text(whole(shapes.WORKSPACE_SHAPE.pattern), allow_blank=True, required=False)
    is_default = serializers.BooleanField(required=False)


class NewKey(CamelSerializer):
    """A key to take the place of the stored one. `force` stores it without a test."""

    api_key = SecretField()
    force = serializers.BooleanField(default=False)


class UnsavedKey(CamelSerializer):
    """A key to test. It is not stored."""

    provider = Text(one_of(providers.PROVIDERS), max_length=32)
    api_key = SecretField()
    base_url = serializers.CharField(allow_blank=True, default="")
    workspace_id = Text(whole(shapes.WORKSPACE_SHAPE.pattern), allow_blank=True, default="")


class VerdictAnswer(CamelSerializer):
    """What a test of a key found. It is an answer, not an error, even when the key does not work."""

    ok = serializers.BooleanField()
    code = serializers.CharField()
    message = serializers.CharField()
    fix = serializers.CharField(allow_blank=True)
    models = ModelName(many=True)
    tested_at = serializers.DateTimeField()


class Integrations(APIView):
    """The providers that the organization connected with its own keys."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ, "POST": MANAGE}
    refusals = {"POST": (AlreadyExists, KeyKindRefused, BaseUrlRefused, CredentialUnreadable)}
    pagination_class = CursorPages

    @extend_schema(operation_id="integrations_list", responses=IntegrationAnswer(many=True))
    def get(self, request: Request) -> Response:
        """List the providers that the organization connected with its own keys."""
        integrations = Integration.objects.for_org(caller(request).org)
        return CursorPages.answer(request, integrations, _answer_for(caller(request)))

    @extend_schema(operation_id="integrations_create", request=NewIntegration, responses={201: IntegrationAnswer})
    def post(self, request: Request) -> Response:
        """Connect a provider with a key of the organization. The key is sealed, and never shown again."""
        body = NewIntegration(data=request.data)
        body.is_valid(raise_exception=True)

        integration = services.add_integration(caller(request), **body.validated_data)
        return created(request, integration.id, IntegrationAnswer(integration).data)


class IntegrationDetail(APIView):
    """One connected provider."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ, "PATCH": MANAGE, "DELETE": MANAGE}
    refusals = {
        "PATCH": (AlreadyExists, InUse, KeyKindRefused, BaseUrlRefused, CredentialUnreadable),
        "DELETE": (InUse,),
    }

    @extend_schema(responses=IntegrationAnswer)
    def get(self, request: Request, integration_id: str) -> Response:
        """Show one connected provider."""
        return Response(_answer_for(caller(request))(_find(request, integration_id)).data)

    @extend_schema(operation_id="integrations_update", request=IntegrationChange, responses=IntegrationAnswer)
    def patch(self, request: Request, integration_id: str) -> Response:
        """Change a connected provider. A new `baseUrl` needs the key again."""
        integration = _find(request, integration_id)
        body = IntegrationChange(data=request.data)
        body.is_valid(raise_exception=True)

        integration = services.update_integration(caller(request), integration, **body.validated_data)
        return Response(IntegrationAnswer(integration).data)

    @extend_schema(operation_id="integrations_delete", responses={204: None})
    def delete(self, request: Request, integration_id: str) -> Response:
        """Disconnect a provider, and forget its key."""
        services.remove_integration(caller(request), _find(request, integration_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class IntegrationTest(APIView):
    """Test Connection: a free call to the provider with the stored key."""

    permission_classes = [ManagersWrite]
    scopes = {"POST": MANAGE}
    refusals = {"POST": (OrgSuspended, CredentialUnreadable)}

    @extend_schema(operation_id="integrations_test", request=None, responses=VerdictAnswer)
    def post(self, request: Request, integration_id: str) -> Response:
        """Test a stored key by a free call to its provider. Every verdict is a 200."""
        integration = _find(request, integration_id)
        verdict = services.check_integration(caller(request), integration)
        return Response(VerdictAnswer({**vars(verdict), "tested_at": integration.tested_at}).data)


class IntegrationRotate(APIView):
    """Replace the key. The new one is tested before the old one goes."""

    permission_classes = [ManagersWrite]
    scopes = {"POST": MANAGE}
    refusals = {"POST": (AlreadyExists, InUse, KeyKindRefused, CredentialUnreadable)}

    @extend_schema(operation_id="integrations_rotate", request=NewKey, responses=IntegrationAnswer)
    def post(self, request: Request, integration_id: str) -> Response:
        """Replace a stored key. The new one is tested before the old one goes."""
        integration = _find(request, integration_id)
        body = NewKey(data=request.data)
        body.is_valid(raise_exception=True)

        integration = services.rotate_integration(caller(request), integration, **body.validated_data)
        return Response(IntegrationAnswer(integration).data)


class ConnectionTest(APIView):
    """Test Connection before saving: the key is tried, and forgotten."""

    permission_classes = [ManagersWrite]
    scopes = {"POST": MANAGE}
    refusals = {"POST": (OrgSuspended, KeyKindRefused, BaseUrlRefused)}

    @extend_schema(operation_id="integrations_test_unsaved", request=UnsavedKey, responses=VerdictAnswer)
    def post(self, request: Request) -> Response:
        """Test a key before it is saved. It is tried, and forgotten."""
        body = UnsavedKey(data=request.data)
        body.is_valid(raise_exception=True)

        verdict = services.check_connection(caller(request), **body.validated_data)
        return Response(VerdictAnswer({**vars(verdict), "tested_at": timezone.now()}).data)


def _answer_for(access: Access) -> type[IntegrationAnswer]:
    return IntegrationAnswer if access.manages else IntegrationForMembers


def _find(request: Request, integration_id: str) -> Integration:
    integrations = Integration.objects.for_org(caller(request).org).select_related("org")
    found: Integration = integrations.get_or_404(pk=integration_id)
    return found
