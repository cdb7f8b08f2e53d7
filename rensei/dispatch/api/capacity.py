"""REST: the capacity that an organization can use now."""

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from rensei.core.api import CamelSerializer
from rensei.core.dollars_field import DollarsField
from rensei.core.lists import Filters, read_filters
from rensei.core.views import Endpoint
from rensei.dispatch import capacity
from rensei.dispatch.models import CapacityPool
from rensei.orgs.access import caller
from rensei.orgs.permissions import MembersRead
from rensei.orgs.scopes import BILLING, READ_OR_RUNS

STATE_HELP = (
    "A dispatch to a pool that is `inactive` or `unavailable` is refused. In one that is `full`, runs wait. One whose "
    "account is `credential-failing` was refused its key by the provider."
)


class CapacityAnswer(CamelSerializer):
    """The built-in pools, and those of the organization."""

    class Pool(CamelSerializer):
        id = serializers.CharField(allow_null=True, help_text="Null for a built-in one")
        name = serializers.CharField()
        provider_id = serializers.ChoiceField(choices=CapacityPool.Provider.choices)
        state = serializers.ChoiceField(choices=capacity.STATES, help_text=STATE_HELP)
        reason = serializers.CharField(allow_null=True, help_text="Why it is in this state; null if it is active")
        fix = serializers.CharField(allow_null=True, help_text="The step that mends it; null if it is active")
        running = serializers.IntegerField(help_text="Runs that execute on it")
        waiting = serializers.IntegerField(help_text="Queued runs that were dispatched to it")
        slots = serializers.IntegerField(
            allow_null=True, help_text="How many sandboxes of it run at once; null where runs need none"
        )

    results = Pool(many=True)


class Capacity(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": READ_OR_RUNS}

    @extend_schema(responses=CapacityAnswer)
    def get(self, request: Request) -> Response:
        """Show where runs can execute now. Runs are counted that the caller may see."""
        return Response(CapacityAnswer({"results": capacity.of_org(caller(request))}).data)


class CapacityCostAnswer(CamelSerializer):
    """What sandboxes in clouds have cost, at the list prices of their providers, which bill the organization."""

    class Pool(CamelSerializer):
        pool = serializers.CharField()
        provider_id = serializers.CharField(source="provider")
        sandboxes = serializers.IntegerField(help_text="Those that ended in the window")
        seconds = serializers.IntegerField()
        amount_usd = DollarsField(source="known_picodollars")
        unpriced = serializers.IntegerField(help_text="Sandboxes whose price is not known; the amount leaves them out")

    window = serializers.ChoiceField(choices=capacity.Window.choices)
    results = Pool(many=True)


class CapacityCost(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": BILLING}

    class Filter(Filters):
        window = serializers.ChoiceField(choices=capacity.Window.choices, default=capacity.Window.MONTH)

    @extend_schema(responses=CapacityCostAnswer)
    def get(self, request: Request) -> Response:
        """Sum by pool what sandboxes in clouds have cost. The cost of the models that they call is not in it."""
        window = capacity.Window(read_filters(self.Filter, request)["window"])
        found = capacity.costs(caller(request), window=window)
        return Response(CapacityCostAnswer({"window": window, "results": found}).data)
