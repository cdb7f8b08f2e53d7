"""REST: the open invitations."""

from typing import Any

from django.urls import reverse
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from rensei.accounts import invitations
from rensei.accounts.invitations import Sent
from rensei.core.api import CamelSerializer
from rensei.core.errors import AlreadyExists
from rensei.core.views import Endpoint
from rensei.orgs.access import caller
from rensei.orgs.models import Role
from rensei.orgs.permissions import ManagersWrite
from rensei.orgs.resources import Listed, Removed
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


class Invitations(Listed):
    permission_classes = [ManagersWrite]
    scopes = {"GET": READ, "POST": GRANT}
    refusals = {"POST": (AlreadyExists,)}
    does = {"GET": "List the invitations that are not yet answered."}
    throttle_scope = "sensitive"
    Answer = InvitationAnswer
    Created = InvitationSent
    rows = staticmethod(invitations.open_invitations)

    class Body(CamelSerializer):
        email = serializers.EmailField(max_length=254)
        role = serializers.ChoiceField(choices=Role.choices)

    def post(self, request: Request) -> Response:
        """Create an invitation, and mail its link. It is the same as inviting under `/members`."""
        return invited(request, **self.fields(request))


class InvitationDetail(Removed):
    permission_classes = [ManagersWrite]
    scopes = {"GET": READ, "DELETE": GRANT}
    does = {"GET": "Show one open invitation.", "DELETE": "Revoke an invitation. Its link no longer works."}
    Answer = InvitationAnswer
    rows = staticmethod(invitations.open_invitations)
    remove = staticmethod(invitations.revoke)


class InvitationResend(Endpoint):
    permission_classes = [ManagersWrite]
    scopes = {"POST": GRANT}
    throttle_scope = "sensitive"

    @extend_schema(request=None, responses=InvitationSent)
    def post(self, request: Request, invitation_id: str) -> Response:
        """Mail a new link for another seven days. The earlier link no longer works."""
        access = caller(request)
        found = invitations.open_invitations(access).get_or_404(pk=invitation_id)
        return Response(sent_body(invitations.resend(access, found)))


def invited(request: Request, *, email: str, role: str) -> Response:
    """Invite a person, and answer with the invitation and where it is found."""
    sent = invitations.invite(caller(request), email=email, role=role)
    headers = {"Location": reverse("api-invitation", args=[sent.invitation.pk])}
    return Response(sent_body(sent), status=status.HTTP_201_CREATED, headers=headers)


def sent_body(sent: Sent) -> dict[str, Any]:
    """Write an invitation for its sender, with the link if this server sends no mail."""
    answer: dict[str, Any] = InvitationAnswer(sent.invitation).data
    return {**answer, "link": sent.link.reveal() if sent.link else None}
