"""REST: the people of the organization and their roles."""

from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from rensei.accounts.invitations_api import InvitationSent, invited
from rensei.core.api import CamelSerializer, CursorPages
from rensei.core.errors import AlreadyExists, InUse
from rensei.orgs import services
from rensei.orgs.access import Access, caller
from rensei.orgs.models import Membership, MembershipQuerySet, Role
from rensei.orgs.permissions import ManagersWrite
from rensei.orgs.scopes import GRANT, READ


class MemberAnswer(CamelSerializer):
    id = serializers.CharField()
    email = serializers.EmailField(source="user.email")
    name = serializers.CharField(source="user.name")
    role = serializers.ChoiceField(choices=Role.choices)
    created_at = serializers.DateTimeField()
    ends_at = serializers.DateTimeField(allow_null=True, help_text="When the access of an operator ends by itself")


class Members(APIView):
    """The people of the organization, and their roles. A POST sends an invitation, which the person has to accept."""

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

        return invited(request, **body.validated_data)


class MayLeave(ManagersWrite):
    """Owners and admins change; any member may leave. The service checks whether members remove themselves."""

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
        return Response(self.Answer(_members(caller(request)).get_or_404(pk=member_id)).data)

    def patch(self, request: Request, member_id: str) -> Response:
        """Give a member another role."""
        membership = _members(caller(request)).get_or_404(pk=member_id)
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        membership = services.change_role(caller(request), membership, **body.validated_data)
        return Response(self.Answer(membership).data)

    def delete(self, request: Request, member_id: str) -> Response:
        """Remove a member, or leave the organization."""
        services.remove_member(caller(request), _members(caller(request)).get_or_404(pk=member_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


def _members(access: Access) -> MembershipQuerySet:
    found: MembershipQuerySet = Membership.objects.for_org(access.org).select_related("user")
    return found
