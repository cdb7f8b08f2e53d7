"""REST endpoints for the providers, and the organization's own keys for them."""

from collections.abc import Sequence
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from integrations import capacity
from integrations.keys import services, shapes
from integrations.keys.identity import identity_of
from integrations.models import Integration
from integrations.outbound.destinations import BaseUrlRefused
from integrations.providers.base import Federation, KeyKindRefused
from integrations.vault import openings_kept
from integrations.vault.errors import CredentialUnreadable
from rensei.core.api import CamelSerializer
from rensei.core.errors import AlreadyExists, InUse
from rensei.core.json_fields import Text, one_of, whole
from rensei.core.secret import Secret
from rensei.core.views import Endpoint
from rensei.orgs.access import Access, caller
from rensei.orgs.kill_switches import OrgSuspended
from rensei.orgs.permissions import ManagersWrite, MembersRead
from rensei.orgs.resources import Changed, Listed, Removed, Resource
from rensei.orgs.row_limits import LimitReached
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


class Reminder(serializers.IntegerField):
    """The age of a key in days at which its owners are reminded. Null: never."""

    def __init__(self, **options: Any) -> None:
        super().__init__(min_value=1, max_value=shapes.REMIND_AFTER_DAYS_MAX, allow_null=True, **options)


class ProviderAnswer(CamelSerializer):
    """A provider that keys can be connected for."""

    id = serializers.CharField()
    display_name = serializers.CharField()
    config_namespace = serializers.CharField()
    auth_modes = serializers.ListField(child=serializers.CharField())
    requires_endpoint = serializers.BooleanField()
    category = serializers.CharField()
    key_page_url = serializers.URLField(help_text="Where people make a key")


class IdentityAnswer(CamelSerializer):
    """Who this server says that the organization is. The provider has to trust it, before it is connected."""

    issuer = serializers.CharField(help_text="`iss` of the identity tokens")
    jwks_url = serializers.CharField(help_text="The issuer's public keys")
    subject = serializers.CharField(help_text="`sub`: a rule at the provider must match exactly this")
    audience = serializers.CharField(help_text="`aud`")


class ProviderPage(CamelSerializer):
    """All providers: they fit on one page."""

    next = serializers.URLField(allow_null=True, default=None)
    previous = serializers.URLField(allow_null=True, default=None)
    results = ProviderAnswer(many=True)


class Providers(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": READ_OR_RUNS}

    @extend_schema(operation_id="providers_list", responses=ProviderPage)
    def get(self, request: Request) -> Response:
        """List the providers that this server supports."""
        return Response(ProviderPage({"results": list(capacity.specs().values())}).data)


class ProviderIdentity(Endpoint):
    permission_classes = [ManagersWrite]
    scopes = {"GET": MANAGE}
    refusals = {"GET": (CredentialUnreadable,)}

    @extend_schema(operation_id="providers_identity", responses=IdentityAnswer)
    def get(self, request: Request, provider: str) -> Response:
        """Show what has to be entered at a provider, so that it trusts the identity of the organization."""
        return Response(IdentityAnswer(identity_of(caller(request), provider=provider)).data)


class FederationIds(CamelSerializer):
    """The ids at the provider by which it knows the organization's identity. They take the place of a key."""

    rule_id = Text(whole(r"fdrl_[A-Za-z0-9]{4,80}"), help_text="Id of the federation rule, `fdrl_…`")
    organization_id = Text(whole(r"[0-9a-fA-F-]{36}"), help_text="UUID of the organization at the provider")
    service_account_id = Text(whole(r"svac_[A-Za-z0-9]{4,80}"), help_text="Id of the service account, `svac_…`")

    def to_internal_value(self, data: Any) -> Any:
        return Federation(**super().to_internal_value(data))


class ShownFederation(CamelSerializer):
    """The ids of a federation, as they are stored."""

    ruleId = serializers.CharField()  # noqa: N815 - stored as it is on the wire
    organizationId = serializers.CharField()  # noqa: N815
    serviceAccountId = serializers.CharField()  # noqa: N815


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
    federation = ShownFederation(allow_null=True, help_text="Null: a key is stored")
    status = serializers.ChoiceField(choices=Integration.Status.choices)
    tested_at = serializers.DateTimeField(allow_null=True)
    last_error = LastError(allow_null=True, help_text="For owners and admins; null for others")
    models = ModelName(many=True, source="model_list")
    base_url = serializers.CharField(help_text="Empty: the provider's own address")
    workspace_id = serializers.CharField()
    is_default = serializers.BooleanField()
    last_used_at = serializers.DateTimeField(allow_null=True)
    last_opened_at = serializers.DateTimeField(
        allow_null=True, help_text="When the stored key was last opened, for a call, a test or another reason"
    )
    key_created_at = serializers.DateTimeField(
        source="key_stored_at", allow_null=True, help_text="When the present key was stored; null without one"
    )
    key_age_days = serializers.IntegerField(allow_null=True, help_text="Null without a stored key")
    remind_after_days = serializers.IntegerField(
        allow_null=True, help_text="The age of the key at which owners and admins are reminded, once; null: never"
    )
    opened_this_month = serializers.IntegerField(help_text="How often, in this month (UTC)")
    created_at = serializers.DateTimeField()


class NewIntegration(CamelSerializer):
    """A key to connect, or a federation in its place."""

    provider = Text(one_of(capacity.specs()), max_length=32)
    name = serializers.CharField(max_length=120, allow_blank=True, default="")
    api_key = SecretField(required=False)
    federation = FederationIds(required=False)
    base_url = serializers.CharField(allow_blank=True, default="")
    workspace_id = Text(whole(shapes.ANY_WORKSPACE_SHAPE.pattern), allow_blank=True, default="")
    is_default = serializers.BooleanField(allow_null=True, default=None)
    remind_after_days = Reminder(default=None)


class IntegrationChange(CamelSerializer):
    """What to change. A new `baseUrl` needs the key again; to replace only the key, rotate it."""

    name = serializers.CharField(max_length=120, required=False)
    base_url = serializers.CharField(allow_blank=True, required=False)
    api_key = SecretField(required=False)
    workspace_id = Text(whole(shapes.ANY_WORKSPACE_SHAPE.pattern), allow_blank=True, required=False)
    is_default = serializers.BooleanField(required=False)
    remind_after_days = Reminder(required=False)


class NewKey(CamelSerializer):
    """A key or a federation, to take the place of what is stored. `force` stores it without a test."""

    api_key = SecretField(required=False)
    federation = FederationIds(required=False)
    force = serializers.BooleanField(default=False)


class UnsavedKey(CamelSerializer):
    """A key or a federation to test. It is not stored."""

    provider = Text(one_of(capacity.specs()), max_length=32)
    api_key = SecretField(required=False)
    federation = FederationIds(required=False)
    base_url = serializers.CharField(allow_blank=True, default="")
    workspace_id = Text(whole(shapes.ANY_WORKSPACE_SHAPE.pattern), allow_blank=True, default="")


class VerdictAnswer(CamelSerializer):
    """What a test of a key found. It is an answer, not an error, even when the key does not work."""

    ok = serializers.BooleanField()
    code = serializers.CharField()
    message = serializers.CharField()
    fix = serializers.CharField(allow_blank=True)
    models = ModelName(many=True)
    tested_at = serializers.DateTimeField()


class _Connected(Resource):
    """What the addresses of connected providers share. Only who manages keys sees the results of their tests."""

    permission_classes = [ManagersWrite]
    Answer = IntegrationAnswer
    rows = staticmethod(services.visible_integrations)

    def answers(self, access: Access, found: Sequence[Integration]) -> Any:
        openings_kept.add_to(found, now=timezone.now())
        answers = super().answers(access, found)
        return answers if access.manages else [{**one, "lastError": None} for one in answers]


class Integrations(_Connected, Listed):
    scopes = {"GET": READ, "POST": MANAGE}
    refusals = {"POST": (AlreadyExists, LimitReached, KeyKindRefused, BaseUrlRefused, CredentialUnreadable)}
    does = {"GET": "List the providers that the organization connected with its own keys."}
    Body = NewIntegration

    def post(self, request: Request) -> Response:
        """
        Connect a provider with a key of the organization, or without one, by a federation.

        The key is sealed, and never shown again.
        """
        return self.created(request, services.add_integration(caller(request), **self.fields(request)))


class IntegrationDetail(_Connected, Changed, Removed):
    scopes = {"GET": READ, "PATCH": MANAGE, "DELETE": MANAGE}
    refusals = {
        "PATCH": (AlreadyExists, InUse, KeyKindRefused, BaseUrlRefused, CredentialUnreadable),
        "DELETE": (InUse,),
    }
    does = {
        "GET": "Show one connected provider.",
        "PATCH": "Change a connected provider. A new `baseUrl` needs the key again.",
        "DELETE": "Disconnect a provider, and forget its key.",
    }
    Body = IntegrationChange
    change = staticmethod(services.update_integration)
    remove = staticmethod(services.remove_integration)


class IntegrationTest(_Connected):
    scopes = {"POST": MANAGE}
    refusals = {"POST": (OrgSuspended, CredentialUnreadable)}

    @extend_schema(operation_id="integrations_test", request=None, responses=VerdictAnswer)
    def post(self, request: Request, integration_id: str) -> Response:
        """Test a stored key by a free call to its provider. Every verdict is a 200."""
        integration = self.rows(caller(request)).get_or_404(pk=integration_id)
        verdict = services.check_integration(caller(request), integration)
        return Response(VerdictAnswer({**vars(verdict), "tested_at": integration.tested_at}).data)


class IntegrationRotate(_Connected):
    scopes = {"POST": MANAGE}
    refusals = {"POST": (AlreadyExists, InUse, KeyKindRefused, CredentialUnreadable)}
    Body = NewKey

    @extend_schema(operation_id="integrations_rotate")
    def post(self, request: Request, integration_id: str) -> Response:
        """Replace a stored key. The new one is tested before the old one goes."""
        access = caller(request)
        integration = self.rows(access).get_or_404(pk=integration_id)
        return Response(self.answer(access, services.rotate_integration(access, integration, **self.fields(request))))


class ConnectionTest(Resource):
    permission_classes = [ManagersWrite]
    scopes = {"POST": MANAGE}
    refusals = {"POST": (OrgSuspended, KeyKindRefused, BaseUrlRefused)}
    Answer = VerdictAnswer
    Body = UnsavedKey

    @extend_schema(operation_id="integrations_test_unsaved")
    def post(self, request: Request) -> Response:
        """Test a key before it is saved. It is tried, and forgotten."""
        verdict = services.check_connection(caller(request), **self.fields(request))
        return Response(self.Answer({**vars(verdict), "tested_at": timezone.now()}).data)
