"""Creating, changing and finding model profiles. Saving a profile checks it against its provider and model."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from django.db.models import F, Q, QuerySet
from django.utils import timezone

from catalog.lookup import find_named, names_of
from catalog.models import CatalogEntry
from catalog.provider_config import validate_provider_config
from catalog.providers import ProviderSpec
from catalog.services import check_effort, find_spec, may_create, not_in_catalog, served_entries
from integrations.models import Integration
from profiles import stored_bytes
from profiles.ids import clean_public_id, public_id_for
from profiles.models import ModelProfile
from rensei.audit.record import record
from rensei.core.auth_modes import AuthMode, in_preference_order
from rensei.core.clock import database_now
from rensei.core.errors import AlreadyExists, FieldError, InUse, NotFound, NotPermitted
from rensei.core.transactions import durable, unique
from rensei.orgs import locks, row_limits, storage
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project
from rensei.orgs.shapes import clean_name

NAME_LENGTH = 63
LARGEST_COLUMN_VALUE = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """The values of a profile that members choose."""

    name: str
    provider: str
    model_id: str
    auth_modes: list[str]
    effort: str
    scope: str
    project: Project | None
    integration: Integration | None
    system: str
    max_tokens: int | None
    prompt_caching: str
    provider_config: dict[str, Any]
    is_default: bool


def create_profile(
    access: Access,
    *,
    name: str,
    provider: str,
    model_id: str,
    auth_modes: list[str],
    effort: str = "",
    scope: str = ModelProfile.Scope.ORGANIZATION,
    project: Project | None = None,
    integration: Integration | None = None,
    system: str = "",
    max_tokens: int | None = None,
    prompt_caching: str = ModelProfile.PromptCaching.EPHEMERAL,
    provider_config: dict[str, Any] | None = None,
    is_default: bool = False,
    public_id: str = "",
) -> ModelProfile:
    """
    Create a profile. Its id is derived from its name unless one is given, and does not change.

    It may be saved before a key is connected or an entitlement exists; the refusal occurs at dispatch.

    :raises RenseiError: if a value is wrong, or the id is in use
    """
    draft = _checked(
        access,
        _Draft(
            name=name,
            provider=provider,
            model_id=model_id,
            auth_modes=auth_modes,
            effort=effort,
            scope=scope,
            project=project,
            integration=integration,
            system=system,
            max_tokens=max_tokens,
            prompt_caching=prompt_caching,
            provider_config={} if provider_config is None else provider_config,
            is_default=is_default,
        ),
    )
    public_id = clean_public_id(public_id) if public_id else public_id_for(draft.name)
    with durable():
        row_limits.require_room(access.org, ModelProfile.objects.for_org(access.org), row_limits.PROFILES)
        stored = stored_bytes.of_profile(system=draft.system, provider_config=draft.provider_config)
        storage.take(access.org.pk, stored=stored)
        if draft.is_default:
            _clear_default(access.org, draft.project)
        _refuse_name_in_use(access.org, draft.name)
        with unique(AlreadyExists(what=f"A profile with the id '{public_id}'")):
            profile = ModelProfile.objects.create(
                org=access.org,
                public_id=public_id,
                created_by=access.user,
                stored_bytes=stored,
                **_columns(draft),
            )
        record(access, "profile.created", object_id=public_id, model=draft.model_id, auth_modes=draft.auth_modes)
    return profile


def update_profile(access: Access, profile: ModelProfile, **changes: Any) -> ModelProfile:
    """
    Change some values of a profile, named as in `create_profile`. Its id stays the same even if its name changes.

    :raises RenseiError: if the profile would not be valid, or the caller may not change it
    """
    with durable():
        # The caller's object may be stale: unchanged values are read from the row.
        # Defaults are changed one after the other.
        locks.lock(access.org.pk)
        current = find_profile(access, profile.public_id)
        _require_reach(access, current.project)
        before = _Draft(**{field.name: getattr(current, field.name) for field in fields(_Draft)})
        draft = _checked(access, replace(before, **changes))
        changed = [name for name, value in _columns(draft).items() if getattr(before, name) != value]
        stored = stored_bytes.of_profile(system=draft.system, provider_config=draft.provider_config)
        if stored > current.stored_bytes:
            storage.take(access.org.pk, stored=stored - current.stored_bytes)
        else:
            storage.change({access.org.pk: (stored - current.stored_bytes, 0)})
        if "name" in changed:
            _refuse_name_in_use(access.org, draft.name, besides=current)
        if draft.is_default:
            _clear_default(access.org, draft.project, besides=current)
        for name in changed:
            setattr(current, name, getattr(draft, name))
        current.stored_bytes, current.updated_at = stored, timezone.now()
        current.save(update_fields=[*changed, "stored_bytes", "updated_at"])
        record(access, "profile.updated", object_id=current.public_id, changed=changed)
    return current


def delete_profile(access: Access, profile: ModelProfile, *, next_default: ModelProfile | None = None) -> None:
    """
    Delete a profile. Its runs and ledger lines stay, because they refer to it by its id.

    With `next_default`, that profile of the same scope becomes the default in the same step.

    :raises NotPermitted: if the caller may not change it
    :raises NotFound: if the next default is not of the same organization and project
    """
    access.require_writer()
    _require_reach(access, profile.project)
    with durable():
        # Defaults are changed one after the other.
        locks.lock(access.org.pk)
        successor = find_profile(access, next_default.public_id) if next_default is not None else None
        if successor is not None and successor.project_id != profile.project_id:
            raise NotFound
        record(access, "profile.deleted", object_id=profile.public_id)
        profile.delete()
        if successor is not None:
            _clear_default(access.org, successor.project)
            successor.is_default, successor.updated_at = True, timezone.now()
            successor.save(update_fields=["is_default", "updated_at"])
            record(access, "profile.updated", object_id=successor.public_id, changed=["is_default"])


def keep_entry_in_use(*, entry: CatalogEntry, **_signal: object) -> None:
    """
    Protect an organization's own catalog entry from deletion while profiles name it.

    :raises InUse: if one does, under any name of the entry
    """
    assert entry.org is not None
    if users := profiles_naming(entry, org=entry.org):
        raise InUse(what=f"The model '{entry.model_id}'", users=", ".join(users))


def profiles_naming(entry: CatalogEntry, *, org: Org) -> list[str]:
    """List the ids of an organization's profiles that name a model, under any of its names."""
    named = ModelProfile.objects.for_org(org).filter(provider=entry.provider, model_id__in=names_of(entry))
    return sorted(named.values_list("public_id", flat=True))


def visible_profiles(access: Access) -> QuerySet[ModelProfile]:
    """List the profiles that a caller may read: all, or for a project's API token the organization's and its own."""
    profiles: QuerySet[ModelProfile] = ModelProfile.objects.for_org(access.org)
    if access.project is not None:
        profiles = profiles.filter(Q(project=None) | Q(project=access.project))
    return profiles.select_related("project", "integration")


def find_profile(access: Access, public_id: str, *, project: Project | None = None) -> ModelProfile:
    """
    Find a profile by its id. With a project, it must be the organization's or that project's.

    :raises NotFound: if the caller may not read such a profile, or it is another project's
    """
    profile = visible_profiles(access).filter(public_id=public_id.replace("\0", "")).first()
    if profile is None or (project is not None and profile.project_id not in (None, project.pk)):
        raise NotFound
    return profile


def default_profile(org: Org, project: Project | None) -> ModelProfile | None:
    """Find the profile for a dispatch that names none: the project's default, else the organization's."""
    defaults: QuerySet[ModelProfile] = ModelProfile.objects.for_org(org).filter(is_default=True)
    within = Q(project=None) if project is None else Q(project=None) | Q(project=project)
    return (
        defaults.filter(within)
        .select_related("project", "integration")
        .order_by(F("project").asc(nulls_last=True))
        .first()
    )


def _checked(access: Access, draft: _Draft) -> _Draft:
    """Check a draft, in the order in which users would correct it, and return it in normal form."""
    access.require_writer()
    name = clean_name(draft.name, length=NAME_LENGTH)
    _check_scope(access, draft)
    spec = find_spec(draft.provider)
    entry = _entry(access, draft)
    # A model that no model may serve can still be named: the profile shows the refusal that a dispatch would get.
    served = served_entries([entry], org=access.org, today=database_now().date())[entry.pk] or entry
    _check_auth_modes(draft.auth_modes, spec, entry)
    check_effort(served, draft.effort)
    _check_integration(access, draft)
    _check_max_tokens(draft.max_tokens, served)
    if draft.prompt_caching not in ModelProfile.PromptCaching.values:
        known = ", ".join(ModelProfile.PromptCaching.values)
        raise FieldError(pointer="/promptCaching", reason=f"Prompt caching is one of {known}.")
    return replace(
        draft,
        name=name,
        auth_modes=in_preference_order(draft.auth_modes),
        provider_config=validate_provider_config(spec, entry, draft.provider_config, served=served),
    )


def _entry(access: Access, draft: _Draft) -> CatalogEntry:
    """:raises ModelNotInCatalog: if the draft names no model visible to the organization"""
    named = (draft.provider, draft.model_id)
    entry = find_named([named], org=access.org).get(named)
    if entry is not None:
        return entry
    integration = draft.integration
    if integration is None:
        integration = Integration.objects.for_org(access.org).filter(provider=draft.provider, is_default=True).first()
    raise not_in_catalog(
        provider=draft.provider,
        model_id=draft.model_id,
        may_create=may_create(access),
        listed=integration.listed_ids if integration else (),
    )


def _check_scope(access: Access, draft: _Draft) -> None:
    if draft.scope not in ModelProfile.Scope.values:
        raise FieldError(pointer="/scope", reason=f"Scope is one of {', '.join(ModelProfile.Scope.values)}.")
    if draft.project is not None and draft.project.org_id != access.org.pk:
        raise NotFound
    if draft.scope == ModelProfile.Scope.PROJECT and draft.project is None:
        raise FieldError(pointer="/projectId", reason="A profile with the scope project names its project.")
    if draft.scope == ModelProfile.Scope.ORGANIZATION and draft.project is not None:
        raise FieldError(
            pointer="/projectId",
            reason="A profile of the organization has no project. Set scope to project, or leave it out.",
        )
    _require_reach(access, draft.project)


def _require_reach(access: Access, project: Project | None) -> None:
    """:raises NotPermitted: if the caller's API token is limited to one project, and this is not that project's"""
    if access.project is not None and access.project != project:
        raise NotPermitted


def _check_auth_modes(modes: list[str], spec: ProviderSpec, entry: CatalogEntry) -> None:
    if not modes:
        raise FieldError(pointer="/authModes", reason="Name at least one auth mode.")
    for place, mode in enumerate(modes):
        pointer = f"/authModes/{place}"
        if mode not in AuthMode.values:
            raise FieldError(pointer=pointer, reason=f"'{mode}' is no auth mode. Known: {', '.join(AuthMode.values)}.")
        if mode in modes[:place]:
            raise FieldError(pointer=pointer, reason=f"'{mode}' is named twice.")
        if mode not in spec.auth_modes:
            offered = ", ".join(spec.auth_modes)
            raise FieldError(
                pointer=pointer, reason=f"Provider '{spec.id}' does not offer '{mode}'. It offers {offered}."
            )
        if mode not in entry.auth_modes:
            offered = ", ".join(entry.auth_modes)
            raise FieldError(
                pointer=pointer, reason=f"Model '{entry.model_id}' does not offer '{mode}'. It offers {offered}."
            )


def _check_integration(access: Access, draft: _Draft) -> None:
    if draft.integration is None:
        return
    if draft.integration.org_id != access.org.pk:
        raise NotFound
    if draft.integration.provider != draft.provider:
        raise FieldError(
            pointer="/integrationId",
            reason=f"That integration is of the provider '{draft.integration.provider}', not '{draft.provider}'.",
        )


def _check_max_tokens(max_tokens: int | None, served: CatalogEntry) -> None:
    if max_tokens is None:
        return
    largest = served.max_output_tokens or LARGEST_COLUMN_VALUE
    if type(max_tokens) is not int or not 1 <= max_tokens <= largest:
        raise FieldError(
            pointer="/maxTokens",
            reason=f"Give a whole number from 1 to {largest}, the most that {served} answers with.",
        )


def _refuse_name_in_use(org: Org, name: str, *, besides: ModelProfile | None = None) -> None:
    """Refuse a name in use, even by a renamed profile, because users distinguish profiles by name."""
    named: QuerySet[ModelProfile] = ModelProfile.objects.for_org(org).filter(name=name)
    if besides is not None:
        named = named.exclude(pk=besides.pk)
    if named.exists():
        raise AlreadyExists(what=f"A profile with the name '{name}'")


def _clear_default(org: Org, project: Project | None, *, besides: ModelProfile | None = None) -> None:
    """Clear the default flag of the present default profile."""
    defaults: QuerySet[ModelProfile] = ModelProfile.objects.for_org(org).filter(project=project, is_default=True)
    if besides is not None:
        defaults = defaults.exclude(pk=besides.pk)
    defaults.update(is_default=False)


def _columns(draft: _Draft) -> Mapping[str, Any]:
    return {field.name: getattr(draft, field.name) for field in fields(draft)}
