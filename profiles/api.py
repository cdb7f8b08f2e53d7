"""REST endpoints for the organization's model profiles."""

from collections.abc import Sequence
from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from catalog.models import CatalogEntry
from catalog.provider_config import config_form
from catalog.providers import PROVIDERS
from catalog.services import EffortNotSupported, ModelNotInCatalog, ModelRetired
from integrations.keys.services import visible_integrations
from integrations.models import Integration
from profiles import ids, services
from profiles.models import ModelProfile
from profiles.presenters import present
from rensei.core.api import CamelSerializer, OptionalText
from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.core.errors import AlreadyExists, NotFound, named_in
from rensei.core.json_fields import NAME, JSONDocument, Text, one_of, whole
from rensei.orgs.access import Access, caller
from rensei.orgs.permissions import MembersWrite
from rensei.orgs.resources import Listed, Removed, Resource
from rensei.orgs.row_limits import LimitReached
from rensei.orgs.scopes import MANAGE, READ_OR_RUNS
from rensei.orgs.services import find_project
from rensei.orgs.storage import StorageLimitReached

# The errors that the values of a profile may cause.
OF_VALUES = (AlreadyExists, ModelNotInCatalog, ModelRetired, EffortNotSupported, StorageLimitReached)


class ProfileAnswer(CamelSerializer):
    """A profile. `servedModel` is the model that would answer today; `lifecycle` is that of `modelId`."""

    id = serializers.CharField(source="profile.public_id")
    name = serializers.CharField(source="profile.name")
    provider = serializers.CharField(source="profile.provider")
    model_id = serializers.CharField(source="profile.model_id")
    lifecycle = serializers.ChoiceField(choices=CatalogEntry.Lifecycle.choices, allow_null=True)
    served_model = serializers.CharField(allow_null=True)
    auth_modes = serializers.ListField(
        source="profile.auth_modes", child=serializers.ChoiceField(choices=AuthMode.choices)
    )
    effort = OptionalText(source="profile.effort", read_only=True, help_text="Null: the model's default")
    scope = serializers.ChoiceField(source="profile.scope", choices=ModelProfile.Scope.choices)
    project_id = serializers.CharField(source="profile.project.slug", default=None, allow_null=True)
    integration_id = serializers.CharField(allow_null=True, source="profile.integration_id")
    system = serializers.CharField(source="profile.system")
    max_tokens = serializers.IntegerField(source="profile.max_tokens", allow_null=True)
    prompt_caching = serializers.ChoiceField(
        source="profile.prompt_caching", choices=ModelProfile.PromptCaching.choices
    )
    provider_config = JSONDocument("ProviderConfig", config_form(), source="profile.provider_config")
    is_default = serializers.BooleanField(source="profile.is_default")
    created_at = serializers.DateTimeField(source="profile.created_at")
    updated_at = serializers.DateTimeField(source="profile.updated_at")


class ProfileBody(CamelSerializer):
    """The values of a profile. `null` is the same as leaving an optional value out."""

    name = Text(NAME, max_length=services.NAME_LENGTH)
    provider = Text(one_of(PROVIDERS), max_length=32)
    model_id = serializers.CharField(max_length=128)
    auth_modes = serializers.ListField(
        child=serializers.ChoiceField(choices=AuthMode.choices), min_length=1, max_length=len(AuthMode)
    )
    effort = serializers.CharField(max_length=32, allow_blank=True, allow_null=True, required=False)
    scope = serializers.ChoiceField(choices=ModelProfile.Scope.choices, required=False)
    project_id = serializers.CharField(max_length=63, allow_null=True, required=False)
    integration_id = serializers.CharField(max_length=40, allow_null=True, required=False)
    system = serializers.CharField(allow_blank=True, allow_null=True, required=False, trim_whitespace=False)
    max_tokens = serializers.IntegerField(
        allow_null=True, required=False, min_value=1, max_value=2**31 - 1, help_text="At most the model's own maximum"
    )
    prompt_caching = serializers.ChoiceField(choices=ModelProfile.PromptCaching.choices, required=False)
    provider_config = JSONDocument("ProviderConfig", config_form(), allow_null=True, required=False)
    is_default = serializers.BooleanField(required=False)


class NewProfile(ProfileBody):
    """The values of a new profile. Without an `id`, it gets one that is made of its name."""

    id = Text(whole(ids.ID_SHAPE.pattern), source="public_id", max_length=ids.ID_LENGTH, required=False)


class ProfileChange(ProfileBody):
    """The values to change. What is left out stays."""

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        fields = super().get_fields()
        for field in fields.values():
            field.required = False
        return fields


class _Profiles(Resource):
    """What the two addresses of profiles share."""

    permission_classes = [MembersWrite]
    Answer = ProfileAnswer
    rows = staticmethod(services.visible_profiles)

    def answers(self, access: Access, found: Sequence[ModelProfile]) -> Any:
        return ProfileAnswer(present(found, org=access.org, today=database_now().date()), many=True).data


class Profiles(_Profiles, Listed):
    scopes = {"GET": READ_OR_RUNS, "POST": MANAGE}
    refusals = {"POST": (NotFound, LimitReached, *OF_VALUES)}
    does = {"GET": "List the profiles that the caller may see, newest first."}
    Body = NewProfile

    def post(self, request: Request) -> Response:
        """Create a profile. Its id stays. Unless one is given, it is made of the name."""
        access = caller(request)
        return self.created(request, services.create_profile(access, **_values(access, self.fields(request))))


class ProfileDetail(_Profiles, Removed):
    scopes = {"GET": READ_OR_RUNS, "PATCH": MANAGE, "DELETE": MANAGE}
    refusals = {"PATCH": OF_VALUES}
    does = {"GET": "Show one profile.", "DELETE": "Delete a profile. Its runs and ledger lines stay."}
    Body = ProfileChange
    key = "public_id"
    remove = staticmethod(services.delete_profile)

    def patch(self, request: Request, profile_id: str) -> Response:
        """Change some values of a profile."""
        access = caller(request)
        profile = services.find_profile(access, profile_id)
        values = _values(access, self.fields(request))
        return Response(self.answer(access, services.update_profile(access, profile, **values)))


def _values(access: Access, fields: dict[str, Any]) -> dict[str, Any]:
    """Resolve the ids in a body to objects, and an explicit null to the empty value."""
    values = {name: value for name, value in fields.items() if name not in ("project_id", "integration_id")}
    for name, empty in (("effort", ""), ("system", ""), ("provider_config", {})):
        if name in values and values[name] is None:
            values[name] = empty
    if "project_id" in fields:
        slug = fields["project_id"]
        with named_in("/projectId"):
            values["project"] = None if slug is None else find_project(access, slug)
        # A body that names a project and no scope is unambiguous.
        implied = ModelProfile.Scope.ORGANIZATION if slug is None else ModelProfile.Scope.PROJECT
        values.setdefault("scope", implied)
    if "integration_id" in fields:
        values["integration"] = _integration(access, fields["integration_id"])
    return values


def _integration(access: Access, integration_id: str | None) -> Integration | None:
    if integration_id is None:
        return None
    found = visible_integrations(access).filter(pk=integration_id).first()
    if found is None:
        raise NotFound(pointer="/integrationId")
    return found
