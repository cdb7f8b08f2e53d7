"""REST: the organization's API tokens and machines."""

from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from rensei.core.api import CamelSerializer, CursorPages, created
from rensei.core.errors import NotFound, named_in
from rensei.core.json_fields import NAME, Text
from rensei.core.networks import NETWORKS_MAX
from rensei.orgs.access import caller
from rensei.orgs.models import Host
from rensei.orgs.permissions import MembersRead, MembersWrite
from rensei.orgs.scopes import GRANT, MANAGE_OR_LEASES, READ, READ_OR_LEASES, Scope
from rensei.orgs.services import find_project
from rensei.tokens.machines import register_host, revoke_host, update_host, visible_hosts
from rensei.tokens.services import create_token, revoke_token, visible_tokens


class TokenAnswer(CamelSerializer):
    id = serializers.CharField()
    name = serializers.CharField()
    hint = serializers.CharField(help_text="The last characters of the token")
    member = serializers.EmailField(source="membership.user.email")
    project_id = serializers.CharField(source="project.slug", default=None, allow_null=True)
    host_id = serializers.CharField(allow_null=True)
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices))
    allowed_networks = serializers.ListField(child=serializers.CharField())
    made_by = serializers.CharField(
        source="made_by_id", allow_null=True, help_text="The token that made this one, with which it ends"
    )
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField(allow_null=True)
    last_used_at = serializers.DateTimeField(allow_null=True, help_text="To the minute")
    last_used_address = serializers.CharField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)


class Tokens(APIView):
    """API tokens: one's own, and for those who manage or audit everyone's. A new one is shown once."""

    permission_classes = [MembersRead]
    scopes = {"GET": READ, "POST": GRANT}
    refusals = {"POST": (NotFound,)}
    pagination_class = CursorPages
    throttle_scope = "sensitive"
    Answer = TokenAnswer

    class Body(CamelSerializer):
        name = Text(NAME, max_length=120)
        project_id = serializers.CharField(allow_null=True, default=None)
        scopes = serializers.ListField(
            child=serializers.ChoiceField(choices=Scope.choices), allow_empty=False, max_length=20, required=False
        )
        allowed_networks = serializers.ListField(
            child=serializers.CharField(max_length=60),
            max_length=NETWORKS_MAX,
            default=list,
            help_text="In CIDR notation",
        )
        expires_at = serializers.DateTimeField(allow_null=True, default=None)

    class Created(TokenAnswer):
        token = serializers.CharField(help_text="Shown only now")

    def get(self, request: Request) -> Response:
        """List API tokens: the caller's own, or everyone's for those who manage or audit."""
        return CursorPages.answer(request, visible_tokens(caller(request)), self.Answer)

    def post(self, request: Request) -> Response:
        """Create an API token, which is shown once."""
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)
        fields = body.validated_data
        slug = fields["project_id"]
        with named_in("/projectId"):
            project = find_project(caller(request), slug) if slug is not None else None

        token, secret = create_token(
            caller(request),
            name=fields["name"],
            project=project,
            scopes=fields.get("scopes"),
            allowed_networks=fields["allowed_networks"],
            expires_at=fields["expires_at"],
        )
        return created(request, token.pk, {**self.Answer(token).data, "token": secret.reveal()})


class TokenDetail(APIView):
    """One API token. Deleting revokes it at once; its row is kept for the audit log."""

    permission_classes = [MembersRead]
    scopes = {"GET": READ, "DELETE": GRANT}
    throttle_scope = "sensitive"
    Answer = TokenAnswer

    def get(self, request: Request, token_id: str) -> Response:
        """Show one API token, without its secret."""
        return Response(self.Answer(visible_tokens(caller(request)).get_or_404(pk=token_id)).data)

    def delete(self, request: Request, token_id: str) -> Response:
        """Revoke an API token at once. Its row stays, so that the audit log can name it."""
        revoke_token(caller(request), visible_tokens(caller(request)).get_or_404(pk=token_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class HostAnswer(CamelSerializer):
    id = serializers.CharField()
    name = serializers.CharField()
    owner = serializers.EmailField(source="owner.email")
    login = serializers.ChoiceField(choices=Host.Login.choices)
    created_at = serializers.DateTimeField()
    last_seen_at = serializers.DateTimeField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)


class Hosts(APIView):
    """Machines that ran `rensei setup`. Registering one gives the token that only it uses, once."""

    permission_classes = [MembersWrite]
    scopes = {"GET": READ, "POST": GRANT}
    pagination_class = CursorPages
    throttle_scope = "sensitive"
    Answer = HostAnswer

    class Body(CamelSerializer):
        name = Text(NAME, max_length=120)
        login = serializers.ChoiceField(choices=Host.Login.choices, default=Host.Login.NONE)
        scopes = serializers.ListField(
            child=serializers.ChoiceField(choices=Scope.choices), allow_empty=False, max_length=20, required=False
        )

    class Created(HostAnswer):
        token = serializers.CharField(help_text="Shown only now")

    def get(self, request: Request) -> Response:
        """List the machines that ran `rensei setup`."""
        return CursorPages.answer(request, visible_hosts(caller(request)), self.Answer)

    def post(self, request: Request) -> Response:
        """Register a machine, and give the token that only it uses, once."""
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        host, _, secret = register_host(caller(request), **body.validated_data)
        return created(request, host.pk, {**self.Answer(host).data, "token": secret.reveal()})


class HostDetail(APIView):
    """One machine. Deleting revokes it and its tokens at once."""

    permission_classes = [MembersWrite]
    scopes = {"GET": READ_OR_LEASES, "PATCH": MANAGE_OR_LEASES, "DELETE": GRANT}
    Answer = HostAnswer

    class Body(CamelSerializer):
        name = Text(NAME, max_length=120, required=False)
        login = serializers.ChoiceField(choices=Host.Login.choices, required=False)

    def get(self, request: Request, host_id: str) -> Response:
        """Show one machine."""
        return Response(self.Answer(visible_hosts(caller(request)).get_or_404(pk=host_id)).data)

    def patch(self, request: Request, host_id: str) -> Response:
        """Change the name or the kind of login of a machine."""
        host = visible_hosts(caller(request)).get_or_404(pk=host_id)
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        host = update_host(caller(request), host, **body.validated_data)
        return Response(self.Answer(host).data)

    def delete(self, request: Request, host_id: str) -> Response:
        """Revoke a machine and its tokens at once."""
        revoke_host(caller(request), visible_hosts(caller(request)).get_or_404(pk=host_id))
        return Response(status=status.HTTP_204_NO_CONTENT)
