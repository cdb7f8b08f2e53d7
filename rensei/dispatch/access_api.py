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
from rensei.dispatch import access_policies, policy_preview, services
from rensei.dispatch.models import CapacityPool
from rensei.dispatch.resolver import ANY, effective
from rensei.orgs import policies
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.api import PolicyBody
from rensei.orgs.authentication import caller
from rensei.orgs.models import Project
from rensei.orgs.permissions import ManagersWrite
from rensei.orgs.scopes import GRANT, MANAGE, READ, READ_OR_RUNS


class PolicyAnswer(CamelSerializer):
    """A stored policy, and what is left of each mode after everything above it."""

    matrix = serializers.JSONField()
    effective = serializers.JSONField()


class OrgPolicy(APIView):
    """The access policy of the organization."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ, "PUT": GRANT}
    Body = PolicyBody
    Answer = PolicyAnswer

    def get(self, request: Request) -> Response:
        return Response(policy_body(caller(request), None))

    def put(self, request: Request) -> Response:
        return Response(_set(request, None))


class ProjectPolicy(APIView):
    """The access policy of a project."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ, "PUT": GRANT}
    Body = PolicyBody
    Answer = PolicyAnswer

    def get(self, request: Request, project_id: str) -> Response:
        access = caller(request)
        return Response(policy_body(access, orgs.find_project(access, project_id)))

    def put(self, request: Request, project_id: str) -> Response:
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
        return Response(_preview(request, None))


class ProjectPolicyPreview(APIView):
    """What a policy of a project would change, without setting it."""

    permission_classes = [ManagersWrite]
    scopes = {"POST": READ}
    Body = PolicyBody

    @extend_schema(request=PolicyBody, responses=PreviewAnswer)
    def post(self, request: Request, project_id: str) -> Response:
        return Response(_preview(request, orgs.find_project(caller(request), project_id)))


class PoolAnswer(CamelSerializer):
    id = serializers.CharField()
    name = serializers.CharField()
    provider_id = serializers.CharField()
    config = serializers.JSONField()
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
        name = serializers.CharField(max_length=63)
        provider_id = serializers.ChoiceField(choices=CapacityPool.Provider.choices)
        config = serializers.DictField(required=False)

    def get(self, request: Request) -> Response:
        return CursorPages.answer(request, CapacityPool.objects.for_org(caller(request).org), self.Answer)

    def post(self, request: Request) -> Response:
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
        return Response(self.Answer(_find_pool(caller(request), pool_id)).data)

    def patch(self, request: Request, pool_id: str) -> Response:
        pool = _find_pool(caller(request), pool_id)
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        pool = services.update_pool(caller(request), pool, **body.validated_data)
        return Response(self.Answer(pool).data)

    def delete(self, request: Request, pool_id: str) -> Response:
        services.remove_pool(caller(request), _find_pool(caller(request), pool_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


def policy_body(access: Access, project: Project | None) -> dict[str, Any]:
    """
    Write a policy with what it comes to: for `*`, each provider and each row, who denies which mode.

    `effective` is `{"<row>": {"<mode>": {"allowed": bool, "deniedBy": scope | null}}}`.
    """
    stored = policies.applying_policies(access.org, project_ids=[project.pk] if project else [])
    folded = access_policies.as_policies(stored)
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
    access_policies.set_policy(caller(request), matrix=body.validated_data["matrix"], project=project)
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
