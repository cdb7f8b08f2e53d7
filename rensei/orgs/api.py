"""REST: who is asking, and the organization's projects, members, tokens and machines."""

from typing import Any

from django.db.models import QuerySet
from django.urls import reverse
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from rensei import __version__
from rensei.accounts import invitations
from rensei.accounts.invitations_api import InvitationSent, sent_body
from rensei.core.api import CamelSerializer, CursorPages
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import AlreadyExists, InUse, NotFound, named_in
from rensei.core.json_fields import NAME, JSONDocument, Text, members, whole
from rensei.core.networks import NETWORKS_MAX
from rensei.orgs import services
from rensei.orgs.access import Access
from rensei.orgs.models import Host, Membership, Role
from rensei.orgs.permissions import ManagersWrite, MembersRead, MembersWrite
from rensei.orgs.scopes import ANY, GRANT, MANAGE, MANAGE_OR_LEASES, READ, READ_OR_LEASES, READ_OR_RUNS, Scope
from rensei.orgs.shapes import SLUG_SHAPE
from rensei.policies import services as policies
from rensei.tokens.authentication import caller

MATRIX = {
    "type": "object",
    "description": "For a model id, a provider or `*`: which auth modes are allowed. What is left out is inherited.",
    "maxProperties": policies.ROW_LIMIT,
    "propertyNames": {"pattern": r"\S", "maxLength": policies.ROW_NAME_LENGTH},
    "additionalProperties": members(
        {mode.value: members({"allowed": {"type": "boolean"}}, required=True) for mode in AuthMode}
    ),
    "example": {"*": {"shared": {"allowed": False}}},
}


class PolicyBody(CamelSerializer):
    """The document of an access policy, as it is put. Its rows are checked by `policies.validate_matrix`."""

    matrix = JSONDocument("AccessMatrix", MATRIX)


class Me(APIView):
    """Who the caller is, in which organization, with which role."""

    permission_classes = [MembersRead]
    scopes = {"GET": ANY}

    class Answer(CamelSerializer):
        class Person(CamelSerializer):
            email = serializers.EmailField()
            name = serializers.CharField()

        class Organization(CamelSerializer):
            id = serializers.CharField()
            name = serializers.CharField()
            slug = serializers.CharField()

        class Machine(CamelSerializer):
            id = serializers.CharField()
            name = serializers.CharField()

        user = Person()
        org = Organization()
        role = serializers.ChoiceField(choices=Role.choices)
        project_id = serializers.CharField(source="project.slug", default=None, allow_null=True)
        host = Machine(allow_null=True)
        scopes = serializers.SerializerMethodField(help_text="What the token may be used for; all of them in a browser")

        def get_scopes(self, access: Access) -> list[str]:
            return [scope for scope in Scope.values if scope in access.scopes]

    def get(self, request: Request) -> Response:
        """Show the caller, its organization, role and scopes."""
        # Only those who are signed in learn the version: the `rensei` command compares it with its own.
        headers = {"Rensei-Version": __version__}
        return Response(self.Answer(caller(request)).data, headers=headers)


class ProjectAnswer(CamelSerializer):
    id = serializers.CharField(source="slug")
    name = serializers.CharField()
    created_at = serializers.DateTimeField()


class Projects(APIView):
    """The organization's projects. A project's id is its slug."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ_OR_RUNS, "POST": MANAGE}
    refusals = {"POST": (AlreadyExists,)}
    pagination_class = CursorPages
    Answer = ProjectAnswer

    class Body(CamelSerializer):
        id = Text(whole(SLUG_SHAPE.pattern), max_length=63)
        name = Text(NAME, max_length=120)

    def get(self, request: Request) -> Response:
        """List the projects that the caller may see."""
        return CursorPages.answer(request, services.visible_projects(caller(request)), self.Answer)

    def post(self, request: Request) -> Response:
        """Create a project. Its id is its slug, and stays."""
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)
        fields = body.validated_data

        project = services.create_project(caller(request), slug=fields["id"], name=fields["name"])
        return _created(request, project.slug, self.Answer(project).data)


class ProjectDetail(APIView):
    """One project."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ_OR_RUNS, "PATCH": MANAGE, "DELETE": MANAGE}
    Answer = ProjectAnswer

    class Body(CamelSerializer):
        name = Text(NAME, max_length=120)

    def get(self, request: Request, project_id: str) -> Response:
        """Show one project."""
        return Response(self.Answer(services.find_project(caller(request), project_id)).data)

    def patch(self, request: Request, project_id: str) -> Response:
        """Rename a project. Its id stays."""
        project = services.find_project(caller(request), project_id)
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        project = services.update_project(caller(request), project, **body.validated_data)
        return Response(self.Answer(project).data)

    def delete(self, request: Request, project_id: str) -> Response:
        """Delete a project with its policy, profiles and tokens. Its runs and ledger lines stay."""
        services.delete_project(caller(request), services.find_project(caller(request), project_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class MemberAnswer(CamelSerializer):
    id = serializers.CharField()
    email = serializers.EmailField(source="user.email")
    name = serializers.CharField(source="user.name")
    role = serializers.ChoiceField(choices=Role.choices)
    created_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField(allow_null=True, help_text="When the access of an operator ends by itself")


class Members(APIView):
    """The people of the organization, and their roles. A POST invites: nobody is a member who has not accepted."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ, "POST": GRANT}
    refusals = {"POST": (AlreadyExists,)}
    pagination_class = CursorPages
    throttle_scope = "sensitive"
    Answer = MemberAnswer
    Created = InvitationSent

    class Body(CamelSerializer):
        email = serializers.EmailField(max_length=254)
        role = serializers.ChoiceField(choices=Role.choices)

    def get(self, request: Request) -> Response:
        """List the people of the organization."""
        return CursorPages.answer(request, _members(caller(request)), self.Answer)

    def post(self, request: Request) -> Response:
        """Invite a person by email. A person becomes a member by accepting."""
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        sent = invitations.invite(caller(request), **body.validated_data)
        headers = {"Location": reverse("api-invitation", args=[sent.invitation.pk])}
        return Response(sent_body(sent), status=status.HTTP_201_CREATED, headers=headers)


class MayLeave(ManagersWrite):
    """Owners and admins change; everyone may leave. The service tells whether it is oneself that goes."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        return super().has_permission(request, view) or (
            request.method == "DELETE" and isinstance(request.auth, Access)
        )


class MemberDetail(APIView):
    """One member."""

    permission_classes = [MayLeave]
    scopes = {"GET": READ, "PATCH": GRANT, "DELETE": GRANT}
    refusals = {"PATCH": (InUse,), "DELETE": (InUse,)}
    Answer = MemberAnswer

    class Body(CamelSerializer):
        role = serializers.ChoiceField(choices=Role.choices)

    def get(self, request: Request, member_id: str) -> Response:
        """Show one member."""
        return Response(self.Answer(_one(_members(caller(request)), member_id)).data)

    def patch(self, request: Request, member_id: str) -> Response:
        """Give a member another role."""
        membership = _one(_members(caller(request)), member_id)
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        membership = services.change_role(caller(request), membership, **body.validated_data)
        return Response(self.Answer(membership).data)

    def delete(self, request: Request, member_id: str) -> Response:
        """Remove a member, or leave the organization."""
        services.remove_member(caller(request), _one(_members(caller(request)), member_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


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
        return CursorPages.answer(request, services.visible_tokens(caller(request)), self.Answer)

    def post(self, request: Request) -> Response:
        """Create an API token, which is shown once."""
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)
        fields = body.validated_data
        slug = fields["project_id"]
        with named_in("/projectId"):
            project = services.find_project(caller(request), slug) if slug is not None else None

        token, secret = services.create_token(
            caller(request),
            name=fields["name"],
            project=project,
            scopes=fields.get("scopes"),
            allowed_networks=fields["allowed_networks"],
            expires_at=fields["expires_at"],
        )
        return _created(request, token.pk, {**self.Answer(token).data, "token": secret.reveal()})


class TokenDetail(APIView):
    """One API token. Deleting shuts it at once; its row stays, so that the audit log can name it."""

    permission_classes = [MembersRead]
    scopes = {"GET": READ, "DELETE": GRANT}
    throttle_scope = "sensitive"
    Answer = TokenAnswer

    def get(self, request: Request, token_id: str) -> Response:
        """Show one API token, without its secret."""
        return Response(self.Answer(_one(services.visible_tokens(caller(request)), token_id)).data)

    def delete(self, request: Request, token_id: str) -> Response:
        """Revoke an API token at once. Its row stays, so that the audit log can name it."""
        services.revoke_token(caller(request), _one(services.visible_tokens(caller(request)), token_id))
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
        return CursorPages.answer(request, services.visible_hosts(caller(request)), self.Answer)

    def post(self, request: Request) -> Response:
        """Register a machine, and give the token that only it uses, once."""
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        host, _, secret = services.register_host(caller(request), **body.validated_data)
        return _created(request, host.pk, {**self.Answer(host).data, "token": secret.reveal()})


class HostDetail(APIView):
    """One machine. Deleting shuts it and its tokens out at once."""

    permission_classes = [MembersWrite]
    scopes = {"GET": READ_OR_LEASES, "PATCH": MANAGE_OR_LEASES, "DELETE": GRANT}
    Answer = HostAnswer

    class Body(CamelSerializer):
        name = Text(NAME, max_length=120, required=False)
        login = serializers.ChoiceField(choices=Host.Login.choices, required=False)

    def get(self, request: Request, host_id: str) -> Response:
        """Show one machine."""
        return Response(self.Answer(_one(services.visible_hosts(caller(request)), host_id)).data)

    def patch(self, request: Request, host_id: str) -> Response:
        """Change the name or the kind of login of a machine."""
        host = _one(services.visible_hosts(caller(request)), host_id)
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        host = services.update_host(caller(request), host, **body.validated_data)
        return Response(self.Answer(host).data)

    def delete(self, request: Request, host_id: str) -> Response:
        """Revoke a machine and its tokens at once."""
        services.revoke_host(caller(request), _one(services.visible_hosts(caller(request)), host_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


def _members(access: Access) -> QuerySet[Membership]:
    return Membership.objects.for_org(access.org).select_related("user")


def _one(rows: QuerySet[Any], public_id: str) -> Any:
    found = rows.filter(pk=public_id).first()
    if found is None:
        raise NotFound
    return found


def _created(request: Request, public_id: str, body: Any) -> Response:
    return Response(body, status=status.HTTP_201_CREATED, headers={"Location": f"{request.path}/{public_id}"})
