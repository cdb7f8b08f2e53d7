"""REST: access policies, folded with those above them, and capacity pools."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from catalog.models import CatalogEntry
from catalog.providers import REGISTRY as PROVIDERS
from rensei.core.api import CamelSerializer, CursorPages
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import AlreadyExists, NotFound
from rensei.core.json_fields import JSONDocument, Text, anything, members, whole
from rensei.dispatch import services
from rensei.dispatch.admission import policy_preview
from rensei.dispatch.models import CapacityPool
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.api import MATRIX, PolicyBody
from rensei.orgs.models import Project
from rensei.orgs.permissions import ManagersWrite
from rensei.orgs.scopes import GRANT, MANAGE, READ, READ_OR_RUNS
from rensei.policies import documents
from rensei.policies import services as policies
from rensei.policies.resolver import ANY, effective
from rensei.tokens.authentication import caller

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
POOL_CONFIG = anything("Settings of the pool's provider.")


class PolicyAnswer(CamelSerializer):
    """A stored policy, and what is left of each mode after everything above it."""

    matrix = JSONDocument("AccessMatrix", MATRIX)
    effective = JSONDocument("EffectiveAccess", EFFECTIVE)


class OrgPolicy(APIView):
    """The access policy of the organization."""

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


class ProjectPolicy(APIView):
    """The access policy of a project."""

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


class OrgPolicyPreview(APIView):
    """What a policy of the organization would change, without setting it."""

    permission_classes = [ManagersWrite]
    scopes = {"POST": READ}
    Body = PolicyBody

    @extend_schema(request=PolicyBody, responses=PreviewAnswer)
    def post(self, request: Request) -> Response:
        """Preview a policy of the organization, without setting it."""
        return Response(_preview(request, None))


class ProjectPolicyPreview(APIView):
    """What a policy of a project would change, without setting it."""

    permission_classes = [ManagersWrite]
    scopes = {"POST": READ}
    Body = PolicyBody

    @extend_schema(request=PolicyBody, responses=PreviewAnswer)
    def post(self, request: Request, project_id: str) -> Response:
        """Preview a policy of a project, without setting it."""
        return Response(_preview(request, orgs.find_project(caller(request), project_id)))


class PoolAnswer(CamelSerializer):
    id = serializers.CharField()
    name = serializers.CharField()
    provider_id = serializers.CharField()
    config = JSONDocument("PoolConfig", POOL_CONFIG)
    active = serializers.BooleanField()
    created_at = serializers.DateTimeField()


class Pools(APIView):
    """The organization's capacity pools. `local` is built in and not listed."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ_OR_RUNS, "POST": MANAGE}
    refusals = {"POST": (AlreadyExists,)}
    pagination_class = CursorPages
    Answer = PoolAnswer

    class Body(CamelSerializer):
        name = Text(whole(services.POOL_NAME.pattern), max_length=63)
        provider_id = serializers.ChoiceField(choices=CapacityPool.Provider.choices)
        config = JSONDocument("PoolConfig", POOL_CONFIG, required=False)

    def get(self, request: Request) -> Response:
        """List the organization's capacity pools. `local` is built in and not listed."""
        return CursorPages.answer(request, CapacityPool.objects.for_org(caller(request).org), self.Answer)

    def post(self, request: Request) -> Response:
        """Add a capacity pool."""
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)
        fields = body.validated_data

        pool = services.create_pool(
            caller(request),
            name=fields["name"],
            provider_id=fields["provider_id"],
            config=fields.get("config", {}),
        )
        return Response(
            self.Answer(pool).data,
            status=status.HTTP_201_CREATED,
            headers={"Location": f"/api/v1/pools/{pool.id}"},
        )


class PoolDetail(APIView):
    """One capacity pool: switch it on or off, or remove it."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ_OR_RUNS, "PATCH": MANAGE, "DELETE": MANAGE}
    Answer = PoolAnswer

    class Body(CamelSerializer):
        active = serializers.BooleanField()

    def get(self, request: Request, pool_id: str) -> Response:
        """Show one capacity pool."""
        return Response(self.Answer(_find_pool(caller(request), pool_id)).data)

    def patch(self, request: Request, pool_id: str) -> Response:
        """Switch a capacity pool on or off. Runs that were dispatched to it go on."""
        pool = _find_pool(caller(request), pool_id)
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        pool = services.update_pool(caller(request), pool, **body.validated_data)
        return Response(self.Answer(pool).data)

    def delete(self, request: Request, pool_id: str) -> Response:
        """Remove a capacity pool. Runs that name it keep its name."""
        services.remove_pool(caller(request), _find_pool(caller(request), pool_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


def policy_body(access: Access, project: Project | None) -> dict[str, Any]:
    """
    Write a policy with what it comes to: for `*`, each provider and each row, who denies which mode.

    `effective` is `{"<row>": {"<mode>": {"allowed": bool, "deniedBy": scope | null}}}`.
    """
    stored = policies.applying_policies(access.org, project_ids=[project.pk] if project else [])
    folded = documents.as_policies(stored)
    named = {name for policy in folded for name in policy.matrix} - {ANY, *PROVIDERS}
    entries = CatalogEntry.objects.visible_to(access.org).filter(model_id__in=named)
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
    body = PolicyBody(data=request.data)
    body.is_valid(raise_exception=True)
    documents.set_policy(caller(request), matrix=body.validated_data["matrix"], project=project)
    return policy_body(caller(request), project)


def _preview(request: Request, project: Project | None) -> dict[str, Any]:
    body = PolicyBody(data=request.data)
    body.is_valid(raise_exception=True)
    found = policy_preview.changes(caller(request), matrix=body.validated_data["matrix"], project=project)
    return {"changes": [change.wire() for change in found]}


def _find_pool(access: Access, pool_id: str) -> CapacityPool:
    pool: CapacityPool | None = CapacityPool.objects.for_org(access.org).filter(id=pool_id).first()
    if pool is None:
        raise NotFound
    return pool
