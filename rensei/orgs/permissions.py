"""What a route requires of its caller. Every REST view names one of these."""

from typing import TYPE_CHECKING

from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from rensei.core.errors import NotPermitted
from rensei.orgs.access import Access, caller

if TYPE_CHECKING:
    # The views read their default permission from here while they are being imported.
    from rest_framework.views import APIView


class Closed(BasePermission):
    """The default: no caller. A view without a permission is closed."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return False


class MembersRead(BasePermission):
    """Every member may call it, including auditors. For routes that change nothing."""

    refusals = (NotPermitted,)

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return isinstance(request.auth, Access)


class MembersWrite(MembersRead):
    """Every member reads; all but auditors change."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return super().has_permission(request, view) and (request.method in SAFE_METHODS or caller(request).writes)


class ManagersWrite(MembersRead):
    """Every member reads; owners and admins change."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return super().has_permission(request, view) and (request.method in SAFE_METHODS or caller(request).manages)


class OwnersWrite(MembersRead):
    """Every member reads; owners without an end change. For what destroys something for good."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        if not super().has_permission(request, view):
            return False
        if request.method not in SAFE_METHODS:
            caller(request).require_lasting_owner()
        return True
