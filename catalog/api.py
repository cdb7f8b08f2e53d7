"""REST endpoints for the models that an organization may name."""

from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from catalog import services
from catalog.facts import CAPABILITY_FLAGS, THINKING_TYPES
from catalog.models import CatalogEntry
from catalog.presenters import present
from catalog.providers import PROVIDERS
from rensei.core.api import CamelSerializer
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.effort import Effort
from rensei.core.errors import InUse, NotFound
from rensei.core.json_fields import NAME, JSONDocument, OneOf, Text, members, one_of, whole
from rensei.core.lists import CursorPages, Filters, read_filters
from rensei.orgs.access import Access, caller
from rensei.orgs.permissions import ManagersWrite
from rensei.orgs.resources import Listed, Resource
from rensei.orgs.row_limits import LimitReached
from rensei.orgs.scopes import MANAGE, READ_OR_RUNS

CAPABILITIES = members(
    {
        **{flag: {"type": "boolean"} for flag in CAPABILITY_FLAGS},
        "minCacheTokens": {"type": ["integer", "null"], "minimum": 1},
        "thinking": members(
            {
                "types": {"type": "array", "items": {"enum": sorted(THINKING_TYPES)}},
                "onByDefault": {"type": "boolean"},
            },
            required=True,
        ),
    }
)

_CENTS = {
    f"{kind}PerMTokenCents": {"type": "number", "minimum": 0}
    for kind in ("input", "output", "cacheWrite5m", "cacheWrite1h", "cacheRead")
}
PRICING = {
    **members(
        {
            "currency": {"const": "USD"},
            **_CENTS,
            "bands": {
                "type": "array",
                "description": "The prices of calls with longer prompts",
                "items": members({"abovePromptTokens": {"type": "integer"}, **_CENTS}, required=True),
            },
            "effectiveFrom": {"type": "string", "format": "date-time"},
        },
        required=True,
    ),
    "description": "The prices in force, in US cents for a million tokens of each class",
}


class EffortAnswer(CamelSerializer):
    value = serializers.CharField()
    label = serializers.CharField()  # type: ignore[assignment]
    description = serializers.CharField()


class EntryAnswer(CamelSerializer):
    """A model, with its lifecycle today, what serves it, and its prices in US cents per million tokens."""

    provider = serializers.CharField()
    model_id = serializers.CharField()
    aliases = serializers.ListField(child=serializers.CharField(), help_text="other names that mean this model")
    answered_by = serializers.ListField(
        child=serializers.CharField(), help_text="the platform's models that have answered in the name of an own entry"
    )
    display_name = serializers.CharField()
    description = serializers.CharField()
    lifecycle = serializers.ChoiceField(choices=CatalogEntry.Lifecycle.choices)
    retires_on = serializers.DateField(allow_null=True)
    replaced_by = serializers.CharField(allow_null=True)
    served_by = serializers.CharField(allow_null=True)
    context_window = serializers.IntegerField(allow_null=True)
    max_output_tokens = serializers.IntegerField(allow_null=True)
    capabilities = JSONDocument("Capabilities", CAPABILITIES)
    efforts = EffortAnswer(many=True)
    auth_modes = serializers.ListField(child=serializers.ChoiceField(choices=AuthMode.choices))
    pricing = JSONDocument("Pricing", PRICING, allow_null=True, help_text="Null: no price is known")
    source = serializers.CharField()  # type: ignore[assignment]
    scope = serializers.ChoiceField(choices=["platform", "organization"], help_text="`organization`: your own")


class ProviderFilter(Filters):
    provider = OneOf(PROVIDERS, required=False, allow_blank=True, help_text="Models of this provider only")
    lookups = {"provider": "provider"}


class CatalogPages(CursorPages):
    """The catalog in the order of the model ids."""

    ordering = "model_id"


class _Entries(Resource):
    """What the two addresses of models share."""

    permission_classes = [ManagersWrite]
    Answer = EntryAnswer

    @cached_property
    def now(self) -> datetime:
        return database_now()

    def answers(self, access: Access, found: Sequence[CatalogEntry]) -> Any:
        return EntryAnswer(present(found, org=access.org, now=self.now), many=True).data


class Catalog(_Entries, Listed):
    scopes = {"GET": READ_OR_RUNS, "POST": MANAGE}
    refusals = {"POST": (LimitReached,)}
    does = {"GET": "List the platform's models and the organization's own, retired ones included."}
    pagination_class = CatalogPages

    class Filter(ProviderFilter):
        lifecycle = OneOf(CatalogEntry.Lifecycle.values, required=False, allow_blank=True)

    class Body(CamelSerializer):
        provider = Text(one_of(PROVIDERS), max_length=32)
        model_id = Text(whole(services.MODEL_ID.pattern), max_length=128)
        display_name = Text(NAME, max_length=120)
        description = serializers.CharField(max_length=400, allow_blank=True, default="")
        context_window = serializers.IntegerField(
            source="context_window_tokens", min_value=1, max_value=2**31 - 1, allow_null=True, default=None
        )
        max_output_tokens = serializers.IntegerField(min_value=1, max_value=2**31 - 1, allow_null=True, default=None)
        capabilities = JSONDocument("Capabilities", CAPABILITIES, allow_null=True, default=None)
        efforts = serializers.ListField(
            source="effort_levels", child=Text({"enum": Effort.values}), allow_null=True, default=None
        )

    rows = staticmethod(services.visible_entries)

    def narrow(self, rows: Any, request: Request) -> Any:
        asked = read_filters(self.Filter, request)
        if lifecycle := asked.get("lifecycle"):
            rows = rows.in_lifecycle(CatalogEntry.Lifecycle(lifecycle), self.now.date())
        return self.Filter.select(rows, asked)

    @extend_schema(request=Body, responses={200: EntryAnswer, 201: EntryAnswer})
    def post(self, request: Request) -> Response:
        """Add a model to the organization's own catalog. A model that exists already is returned unchanged."""
        access = caller(request)
        entry, created = services.create_entry(access, **self.fields(request))
        return Response(
            self.answer(access, entry),
            status=status.HTTP_201_CREATED if created else status.HTTP_200_OK,
            headers={"Location": f"{request.path}/{entry.model_id}"},
        )


class CatalogModel(_Entries):
    scopes = {"GET": READ_OR_RUNS, "DELETE": MANAGE}
    refusals = {"DELETE": (InUse, services.ModelOfPlatform)}
    Filter = ProviderFilter
    filtered = ("GET", "DELETE")

    def get(self, request: Request, model_id: str) -> Response:
        """Show one model, by its id or another of its names."""
        access = caller(request)
        provider = _provider(request)
        try:
            entry = services.find_entry(org=access.org, provider=provider, model_id=model_id)
        except services.ModelNotInCatalog as refusal:
            # A URL without an object gives a 404; a body that names an unknown model gives a 422.
            raise NotFound from refusal
        return Response(self.answer(access, entry))

    def delete(self, request: Request, model_id: str) -> Response:
        """Delete a model that the organization has added itself."""
        services.delete_entry(caller(request), provider=_provider(request), model_id=model_id)
        return Response(status=status.HTTP_204_NO_CONTENT)


def _provider(request: Request) -> str | None:
    provider: str | None = read_filters(ProviderFilter, request).get("provider")
    return provider or None
