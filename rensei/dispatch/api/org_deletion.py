"""REST: an owner deletes the organization."""

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from rensei.core.errors import NotFound
from rensei.core.lists import Filters, read_filters
from rensei.core.views import Endpoint
from rensei.dispatch import org_deletion
from rensei.orgs.access import caller
from rensei.orgs.permissions import OwnersWrite
from rensei.orgs.scopes import GRANT
from rensei.tokens.throttling import spend_sensitive


class Deletion(Filters):
    """What an owner types to delete the organization."""

    confirm = serializers.CharField(max_length=63, help_text="The organization's ID, typed again")


class OrgDetail(Endpoint):
    permission_classes = [OwnersWrite]
    scopes = {"DELETE": GRANT}
    refusals = {"DELETE": (NotFound,)}
    does = {"DELETE": "End all access to the organization, and delete what it holds, for good. Only an owner may."}
    Filter = Deletion
    filtered = ("DELETE",)

    @extend_schema(responses=None)
    def delete(self, request: Request, org_id: str) -> Response:
        access = caller(request)
        if org_id != access.org.pk:
            raise NotFound
        spend_sensitive(access)
        asked = read_filters(Deletion, request)
        org_deletion.delete_org(access, confirm=asked["confirm"])
        return Response(status=status.HTTP_204_NO_CONTENT)
