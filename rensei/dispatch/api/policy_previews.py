"""REST: preview the changes of an access policy before it is set."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from rensei.core.api import CamelSerializer, read_body
from rensei.core.auth_modes import AuthMode
from rensei.core.views import Endpoint
from rensei.dispatch.admission import policy_preview
from rensei.orgs import services as orgs
from rensei.orgs.access import caller
from rensei.orgs.models import Project
from rensei.orgs.permissions import ManagersWrite
from rensei.orgs.scopes import READ
from rensei.policies.wire import PolicyBody


class PreviewAnswer(CamelSerializer):
    """The profiles that would change, each with what a dispatch comes to before and after."""

    class Change(CamelSerializer):
        class Outcome(CamelSerializer):
            auth_mode = serializers.ChoiceField(choices=AuthMode.choices, allow_null=True)
            payer = serializers.CharField(allow_null=True)
            would_run = serializers.BooleanField()
            code = serializers.CharField(allow_null=True)
            detail = serializers.CharField(allow_null=True)

        profile_id = serializers.CharField()
        project_id = serializers.CharField(allow_null=True)
        before = Outcome()
        after = Outcome()

    changes = Change(many=True)


class OrgPolicyPreview(Endpoint):
    permission_classes = [ManagersWrite]
    scopes = {"POST": READ}
    throttle_scope = "sensitive"
    Body = PolicyBody

    @extend_schema(request=PolicyBody, responses=PreviewAnswer)
    def post(self, request: Request) -> Response:
        """Preview a policy of the organization, without setting it."""
        return Response(_preview(request, None))


class ProjectPolicyPreview(Endpoint):
    permission_classes = [ManagersWrite]
    scopes = {"POST": READ}
    throttle_scope = "sensitive"
    Body = PolicyBody

    @extend_schema(request=PolicyBody, responses=PreviewAnswer)
    def post(self, request: Request, project_id: str) -> Response:
        """Preview a policy of a project, without setting it."""
        return Response(_preview(request, orgs.find_project(caller(request), project_id)))


def _preview(request: Request, project: Project | None) -> dict[str, Any]:
    found = policy_preview.changes(caller(request), **read_body(PolicyBody, request), project=project)
    return {"changes": [change.wire() for change in found]}
