"""REST: the open invitations."""

from typing import Any

from django.urls import reverse
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from rensei.accounts import invitations
from rensei.accounts.invitations import Sent
from rensei.accounts.models import Invitation
from rensei.core.api import CamelSerializer, CursorPages
from rensei.core.errors import AlreadyExists
from rensei.orgs.access import caller
from rensei.orgs.models import Role
from rensei.orgs.permissions import ManagersWrite
from rensei.orgs.scopes import GRANT, READ


class InvitationAnswer(CamelSerializer):
    id = serializers.CharField()
    email = serializers.EmailField()
    role = serializers.ChoiceField(choices=Role.choices)
    mailed = serializers.BooleanField(help_text="Whether the link was mailed to the address")
    invited_by = serializers.EmailField(source="invited_by.email", default=None, allow_null=True)
    created_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField()


class InvitationSent(InvitationAnswer):
    link = serializers.CharField(
        allow_null=True, help_text="Shown only now, and only where this server sends no mail: hand it over yourself"
    )


class Invitations(APIView):
    """Invite a person by email, who becomes a member by opening the link of the mail."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ, "POST": GRANT}
    refusals = {"POST": (AlreadyExists,)}
    pagination_class = CursorPages
    throttle_scope = "sensitive"
    Answer = InvitationAnswer
    Created = InvitationSent

    class Body(CamelSerializer):
        email = serializers.EmailField(max_length=254)
        role = serializers.ChoiceField(choices=Role.choices)

    def get(self, request: Request) -> Response:
        """List the invitations that are not yet answered."""
        return CursorPages.answer(request, invitations.open_invitations(caller(request)), self.Answer)

    def post(self, request: Request) -> Response:
        """Create an invitation, and mail its link. It is the same as inviting under `/members`."""
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        return invited(request, **body.validated_data)


class InvitationDetail(APIView):
    """One open invitation. Deleting takes it back: its link is dead at once."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ, "DELETE": GRANT}
    Answer = InvitationAnswer

    def get(self, request: Request, invitation_id: str) -> Response:
        """Show one open invitation."""
        return Response(self.Answer(_one(request, invitation_id)).data)

    def delete(self, request: Request, invitation_id: str) -> Response:
        """Revoke an invitation. Its link no longer works."""
        invitations.revoke(caller(request), _one(request, invitation_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class InvitationResend(APIView):
    """Mail a new link for another seven days. The earlier link is dead."""

    permission_classes = [ManagersWrite]
    scopes = {"POST": GRANT}
    throttle_scope = "sensitive"

    @extend_schema(request=None, responses=InvitationSent)
    def post(self, request: Request, invitation_id: str) -> Response:
        """Mail a new link for another seven days. The earlier link no longer works."""
        return Response(sent_body(invitations.resend(caller(request), _one(request, invitation_id))))


def _one(request: Request, invitation_id: str) -> Invitation:
    found: Invitation = invitations.open_invitations(caller(request)).get_or_404(pk=invitation_id)
    return found


def invited(request: Request, *, email: str, role: str) -> Response:
    """Invite a person, and answer with the invitation and where it is found."""
    sent = invitations.invite(caller(request), email=email, role=role)
    headers = {"Location": reverse("api-invitation", args=[sent.invitation.pk])}
    return Response(sent_body(sent), status=status.HTTP_201_CREATED, headers=headers)


def sent_body(sent: Sent) -> dict[str, Any]:
    """Write an invitation for its sender, with the link if this server sends no mail."""
    answer: dict[str, Any] = InvitationAnswer(sent.invitation).data
    return {**answer, "link": sent.link.reveal() if sent.link else None}
