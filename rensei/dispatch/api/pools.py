"""REST: capacity pools."""

from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from rensei.core.api import CamelSerializer, CursorPages, created
from rensei.core.errors import AlreadyExists
from rensei.core.json_fields import JSONDocument, Text, anything, whole
from rensei.dispatch import services
from rensei.dispatch.models import CapacityPool
from rensei.orgs.access import caller
from rensei.orgs.permissions import ManagersWrite
from rensei.orgs.scopes import MANAGE, READ_OR_RUNS

POOL_CONFIG = anything("Settings of the pool's provider.")


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
        return created(request, pool.id, self.Answer(pool).data)


class PoolDetail(APIView):
    """One capacity pool: switch it on or off, or remove it."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ_OR_RUNS, "PATCH": MANAGE, "DELETE": MANAGE}
    Answer = PoolAnswer

    class Body(CamelSerializer):
        active = serializers.BooleanField()

    def get(self, request: Request, pool_id: str) -> Response:
        """Show one capacity pool."""
        return Response(self.Answer(CapacityPool.objects.for_org(caller(request).org).get_or_404(id=pool_id)).data)

    def patch(self, request: Request, pool_id: str) -> Response:
        """Switch a capacity pool on or off. Runs that were dispatched to it go on."""
        pool = CapacityPool.objects.for_org(caller(request).org).get_or_404(id=pool_id)
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        pool = services.update_pool(caller(request), pool, **body.validated_data)
        return Response(self.Answer(pool).data)

    def delete(self, request: Request, pool_id: str) -> Response:
        """Remove a capacity pool. Runs that name it keep its name."""
        services.remove_pool(caller(request), CapacityPool.objects.for_org(caller(request).org).get_or_404(id=pool_id))
        return Response(status=status.HTTP_204_NO_CONTENT)
