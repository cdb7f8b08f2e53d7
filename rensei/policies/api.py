"""REST: access policies, combined with those above them."""

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from catalog.providers import PROVIDERS
from catalog.services import visible_entries
from rensei.core.api import CamelSerializer, read_body
from rensei.core.auth_modes import AuthMode
from rensei.core.json_fields import JSONDocument, members
from rensei.core.views import Endpoint
from rensei.orgs import services as orgs
from rensei.orgs.access import Access, caller
from rensei.orgs.models import Project
from rensei.orgs.permissions import ManagersWrite
from rensei.orgs.scopes import GRANT, READ
from rensei.policies import documents
from rensei.policies import services as policies
from rensei.policies.resolver import ANY, effective
from rensei.policies.wire import MATRIX, PolicyBody

_DENIER = {"enum": ["system", "organization", "project", None]}
EFFECTIVE = {
    "type": "object",
    "description": "For `*`, each provider and each named model: whether a mode is allowed, and who denies it.",
    "additionalProperties": members(
        {
            mode.value: members({"allowed": {"type": "boolean"}, "deniedBy": _DENIER}, required=True)
            for mode in AuthMode
        },
        required=True,
    ),
}


class PolicyAnswer(CamelSerializer):
    """A stored policy, and what is left of each mode after everything above it."""

    matrix = JSONDocument("AccessMatrix", MATRIX)
    effective = JSONDocument("EffectiveAccess", EFFECTIVE)


class OrgPolicy(Endpoint):
    permission_classes = [ManagersWrite]
    scopes = {"GET": READ, "PUT": GRANT}
    Body = PolicyBody
    Answer = PolicyAnswer

    def get(self, request: Request) -> Response:
        """Show the organization's access policy, and what it comes to."""
        return Response(policy_body(caller(request), None))

    def put(self, request: Request) -> Response:
        """Set the organization's access policy."""
        return Response(_set(request, None))


class ProjectPolicy(Endpoint):
    permission_classes = [ManagersWrite]
    scopes = {"GET": READ, "PUT": GRANT}
    Body = PolicyBody
    Answer = PolicyAnswer

    def get(self, request: Request, project_id: str) -> Response:
        """Show a project's access policy, and what it comes to."""
        access = caller(request)
        return Response(policy_body(access, orgs.find_project(access, project_id)))

    def put(self, request: Request, project_id: str) -> Response:
        """Set a project's access policy."""
        return Response(_set(request, orgs.find_project(caller(request), project_id)))


def policy_body(access: Access, project: Project | None) -> dict[str, Any]:
    """
    Write a policy and its result: for `*`, each provider and each row, which scope denies which mode.

    `effective` is `{"<row>": {"<mode>": {"allowed": bool, "deniedBy": scope | null}}}`.
    """
    stored = policies.applying_policies(access.org, project_ids=[project.pk] if project else [])
    folded = documents.as_policies(stored)
    named = {name for policy in folded for name in policy.matrix} - {ANY, *PROVIDERS}
    entries = visible_entries(access).filter(model_id__in=named)
    provider_of = {entry.model_id: entry.provider for entry in entries}
    rows = [(ANY, ANY, ANY), *((provider, provider, provider) for provider in sorted(PROVIDERS))]
    rows += [(name, provider_of.get(name, ANY), name) for name in sorted(named)]
    return {
        "matrix": policies.stored_matrix(access.org, project),
        "effective": {
            row: {
                mode.value: {"allowed": denier is None, "deniedBy": denier}
                for mode, denier in effective(folded, provider=provider, model_id=model_id).items()
            }
            for row, provider, model_id in rows
        },
    }


def _set(request: Request, project: Project | None) -> dict[str, Any]:
    documents.set_policy(caller(request), **read_body(PolicyBody, request), project=project)
    return policy_body(caller(request), project)
