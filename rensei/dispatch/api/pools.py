"""REST: capacity pools."""

from collections.abc import Sequence
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from rensei.core.api import CamelSerializer, read_body
from rensei.core.errors import AlreadyExists, InUse
from rensei.core.json_fields import JSONDocument, Text, anything, whole
from rensei.core.views import Endpoint
from rensei.dispatch import capacity, queries, services
from rensei.dispatch.api.capacity import STATE_HELP
from rensei.dispatch.models import CapacityPool
from rensei.dispatch.pools import NoEligiblePool
from rensei.orgs.access import Access, caller
from rensei.orgs.models import Project
from rensei.orgs.permissions import ManagersWrite
from rensei.orgs.resources import Changed, Listed, Removed, Resource
from rensei.orgs.row_limits import LimitReached
from rensei.orgs.scopes import MANAGE, READ_OR_RUNS
from rensei.orgs.services import find_project

POOL_CONFIG = anything("Settings of the pool's provider.")


class PoolAnswer(CamelSerializer):
    id = serializers.CharField()
    name = serializers.CharField()
    provider_id = serializers.CharField()
    config = JSONDocument("PoolConfig", POOL_CONFIG)
    active = serializers.BooleanField()
    created_at = serializers.DateTimeField()
    state = serializers.ChoiceField(choices=capacity.STATES, help_text=STATE_HELP)
    reason = serializers.CharField(allow_null=True, help_text="Why it is in this state; null if it is active")
    fix = serializers.CharField(allow_null=True, help_text="The step that mends it; null if it is active")
    running = serializers.IntegerField(help_text="Runs that execute on it")
    waiting = serializers.IntegerField(help_text="Queued runs that were dispatched to it")
    slots = serializers.IntegerField(
        allow_null=True, help_text="How many sandboxes of it run at once; null where runs need none"
    )


class WithState(Resource):
    """Pools with the state in which a dispatch would find them now."""

    Answer = PoolAnswer

    def answers(self, access: Access, found: Sequence[CapacityPool]) -> Any:
        states = zip(found, capacity.states_of(access, found), strict=True)
        shown = [{**vars(pool), **vars(state)} for pool, state in states]
        return self.Answer(shown, many=True).data


class Pools(WithState, Listed):
    permission_classes = [ManagersWrite]
    scopes = {"GET": READ_OR_RUNS, "POST": MANAGE}
    refusals = {"POST": (AlreadyExists, LimitReached)}
    does = {"GET": "List the organization's capacity pools. `local` is built in and not listed."}
    rows = staticmethod(queries.visible_pools)

    class Body(CamelSerializer):
        name = Text(whole(services.POOL_NAME.pattern), max_length=63)
        provider_id = serializers.ChoiceField(choices=CapacityPool.Provider.choices)
        config = JSONDocument("PoolConfig", POOL_CONFIG, default=dict)
        active = serializers.BooleanField(default=True)

    def post(self, request: Request) -> Response:
        """Add a capacity pool."""
        return self.created(request, services.create_pool(caller(request), **self.fields(request)))


class ProjectPoolAnswer(CamelSerializer):
    pool = serializers.CharField(allow_null=True, help_text="null for `local`")


class ProjectPool(Endpoint):
    permission_classes = [ManagersWrite]
    scopes = {"GET": READ_OR_RUNS, "PUT": MANAGE}
    refusals = {"PUT": (NoEligiblePool,)}

    class Body(CamelSerializer):
        pool = serializers.CharField(max_length=63, allow_null=True)

    @extend_schema(responses=ProjectPoolAnswer)
    def get(self, request: Request, project_id: str) -> Response:
        """Show the default pool of a project, for its runs that name none."""
        return _project_pool(find_project(caller(request), project_id))

    @extend_schema(request=Body, responses=ProjectPoolAnswer)
    def put(self, request: Request, project_id: str) -> Response:
        """Set the default pool of a project. A run that names a pool executes there."""
        access = caller(request)
        project = find_project(access, project_id)
        return _project_pool(services.set_project_pool(access, project, pool=read_body(self.Body, request)["pool"]))


def _project_pool(project: Project) -> Response:
    return Response(ProjectPoolAnswer({"pool": project.pool or None}).data)


class PoolDetail(WithState, Changed, Removed):
    permission_classes = [ManagersWrite]
    scopes = {"GET": READ_OR_RUNS, "PATCH": MANAGE, "DELETE": MANAGE}
    refusals = {"DELETE": (InUse,)}
    does = {
        "GET": "Show one capacity pool.",
        "PATCH": "Switch a capacity pool on or off, or replace its settings. Runs that were dispatched to it go on.",
        "DELETE": "Remove a capacity pool. Runs keep its name; those that wait for a sandbox in a cloud fail.",
    }
    rows = staticmethod(queries.visible_pools)
    change = staticmethod(services.update_pool)
    remove = staticmethod(services.remove_pool)

    class Body(CamelSerializer):
        active = serializers.BooleanField(required=False)
        config = JSONDocument("PoolConfig", POOL_CONFIG, required=False)
