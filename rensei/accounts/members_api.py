"""REST: the people of the organization and their roles."""

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from rensei.accounts.invitations_api import Invitations, InvitationSent, invited
from rensei.core.api import CamelSerializer
from rensei.core.errors import AlreadyExists, InUse
from rensei.orgs import services
from rensei.orgs.access import Access
from rensei.orgs.models import Role
from rensei.orgs.permissions import ManagersWrite
from rensei.orgs.resources import Changed, Listed, Removed
from rensei.orgs.scopes import GRANT, READ


class MemberAnswer(CamelSerializer):
    id = serializers.CharField()
    email = serializers.EmailField(source="user.email")
    name = serializers.CharField(source="user.name")
    role = serializers.ChoiceField(choices=Role.choices)
    created_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField(allow_null=True, help_text="When the access of an operator ends by itself")


class Members(Listed):
    permission_classes = [ManagersWrite]
    scopes = {"GET": READ, "POST": GRANT}
    refusals = {"POST": (AlreadyExists,)}
    does = {"GET": "List the people of the organization."}
    throttle_scope = "sensitive"
    Answer = MemberAnswer
    Created = InvitationSent
    rows = staticmethod(services.members)

    class Body(Invitations.Body):
        pass

    def post(self, request: Request) -> Response:
        """Invite a person by email. A person becomes a member by accepting."""
        return invited(request, **self.fields(request))


class MayLeave(ManagersWrite):
    """Owners and admins change; any member may leave. The service checks whether members remove themselves."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        return super().has_permission(request, view) or (
            request.method == "DELETE" and isinstance(request.auth, Access)
        )


class MemberDetail(Changed, Removed):
    permission_classes = [MayLeave]
    scopes = {"GET": READ, "PATCH": GRANT, "DELETE": GRANT}
    refusals = {"PATCH": (InUse,), "DELETE": (InUse,)}
    does = {
        "GET": "Show one member.",
        "PATCH": "Give a member another role.",
        "DELETE": "Remove a member, or leave the organization.",
    }
    Answer = MemberAnswer
    rows = staticmethod(services.members)
    change = staticmethod(services.change_role)
    remove = staticmethod(services.remove_member)

    class Body(CamelSerializer):
        role = serializers.ChoiceField(choices=Role.choices)
