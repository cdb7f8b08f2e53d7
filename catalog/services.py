"""Finding a model and the model that serves it, and adding models to an organization's own catalog."""

import re
from collections.abc import Iterable
from datetime import date
from typing import Any

from django.db.models import Exists

from catalog.facts import (
    SNAPSHOT_DATE,
    check_capabilities,
    check_effort_levels,
    check_tokens,
    facts_of_same_model,
)
from catalog.loading import LoadReport, load_catalog
from catalog.lookup import asks_for_a_window, find_named
from catalog.models import CatalogEntry, CatalogEntryQuerySet, CatalogSetting
from catalog.providers import PROVIDERS, ProviderSpec
from catalog.signals import entry_leaves
from rensei.audit.record import record
from rensei.core.errors import FieldError, NotFound, NotPermitted, RenseiError, Said
from rensei.core.transactions import durable
from rensei.orgs import row_limits
from rensei.orgs.access import Access
from rensei.orgs.models import Org
from rensei.orgs.shapes import clean_name

__all__ = [
    "EffortNotSupported",
    "LoadReport",
    "ModelNotInCatalog",
    "ModelRetired",
    "check_effort",
    "create_entry",
    "delete_entry",
    "find_entry",
    "find_spec",
    "load_catalog",
    "may_create",
    "not_in_catalog",
    "retired",
    "served_entries",
    "served_entry",
]

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")
DESCRIPTION_LENGTH = 400


class ModelNotInCatalog(RenseiError):
    """No entry visible to the organization has that id."""

    code = "MODEL_NOT_IN_CATALOG"
    status = 422
    title = "Model not found in catalog"
    message = Said("Model '{model_id}' is not in your catalog yet.", "{step}")


class ModelRetired(RenseiError):
    """The provider has retired the model, and no other model may serve it."""

    code = "MODEL_RETIRED"
    status = 409
    title = "Model retired"
    message = Said("Model '{model_id}' was retired on {day}.", "{fix}")


class EffortNotSupported(RenseiError):
    """The model that serves the call does not offer that effort."""

    code = "EFFORT_NOT_SUPPORTED"
    status = 422
    title = "Reasoning effort not supported"
    message = Said("Model '{model_id}' does not support effort '{effort}'.", "{fix}")


class ModelOfPlatform(RenseiError):
    """A platform's model cannot be deleted by an organization, whose policy may deny it."""

    code = "NOT_PERMITTED"
    status = 403
    title = "Not permitted"
    message = Said(
        "'{model_id}' is a model of the platform, and an organization deletes only models that it has added.",
        "To prevent its use, deny it in the access policy.",
    )


def visible_entries(access: Access) -> CatalogEntryQuerySet:
    """List the models that the caller's organization may name: the platform's and its own."""
    return CatalogEntry.objects.visible_to(access.org)


def find_entry(*, org: Org, provider: str | None = None, model_id: str, may_create: bool = False) -> CatalogEntry:
    """
    Find the entry of a model that an organization may name, in any spelling. Without a provider, of any provider.

    :raises ModelNotInCatalog: if there is none, as built by `not_in_catalog`
    """
    providers = sorted(PROVIDERS) if provider is None else [provider]
    found = find_named([(each, model_id) for each in providers], org=org)
    if not found:
        raise not_in_catalog(provider=provider, model_id=model_id, may_create=may_create)
    return next(iter(found.values()))


def not_in_catalog(
    *, provider: str | None, model_id: str, may_create: bool = False, listed: Iterable[str] = ()
) -> ModelNotInCatalog:
    """
    Build the refusal of a name without an entry, with its remedy.

    :param may_create: whether the caller may add entries, so that the command for it is useful
    :param listed: the ids in the provider's own list for the organization's key; a short form of one of them
        is not a separate model
    """
    if suffix := asks_for_a_window(provider, model_id):
        step = f"Leave '{suffix}' out: no model of that name is known to have so large a window."
    elif meant := _listed_as(model_id, listed):
        step = f"The provider lists it as '{meant}'. Name that."
    elif may_create:
        step = f"Add it: {_create_command(provider, model_id)}"
    else:
        step = "Name a model that is, or ask an owner or admin of the organization to add it."
    return ModelNotInCatalog(model_id=model_id, step=step)


def may_create(access: Access) -> bool:
    """Return whether a caller may change the organization's catalog. An API token of one project may not."""
    return access.manages and access.project is None


def served_entry(entry: CatalogEntry, *, org: Org, today: date) -> CatalogEntry:
    """
    Find the entry that serves a model: itself, or the replacement of a retired one.

    :raises ModelRetired: if it has no replacement, or the operator turned redirects off
    """
    served = served_entries([entry], org=org, today=today)[entry.pk]
    if served is None:
        raise retired(entry)
    return served


def retired(entry: CatalogEntry) -> ModelRetired:
    """Build the refusal of a retired model that no other model may serve."""
    return ModelRetired(
        model_id=entry.model_id,
        day=entry.retires_on,
        fix=f"Use '{entry.replaced_by}' instead." if entry.replaced_by else "Choose another model.",
    )


def served_entries(entries: Iterable[CatalogEntry], *, org: Org, today: date) -> dict[int, CatalogEntry | None]:
    """
    Find what serves each of many entries, by the entry's key; None where no model may.

    It takes one query for each step of the longest chain of replacements, which has one step in our data.
    """
    entries = list(entries)
    may_redirect = ~Exists(CatalogSetting.objects.filter(redirect_retired=False))
    replacements: dict[tuple[str, str], CatalogEntry] = {}
    loaded: set[tuple[str, str]] = set()
    while (
        wanted := {_next(entry) for entry in [*entries, *replacements.values()] if _is_retired(entry, today)} - loaded
    ):
        loaded |= wanted
        providers = {provider for provider, _ in wanted}
        model_ids = {model_id for _, model_id in wanted}
        found = CatalogEntry.objects.visible_to(org).filter(provider__in=providers, model_id__in=model_ids)
        replacements |= {_key(entry): entry for entry in found.filter(may_redirect)}
    return {entry.pk: _end_of_chain(entry, replacements, today) for entry in entries}


def check_effort(entry: CatalogEntry, effort: str | None) -> None:
    """
    Check that the serving model offers an effort. With None or "", the model chooses.

    :raises EffortNotSupported: if it does not
    """
    if not effort or effort in entry.effort_levels:
        return
    offered = ", ".join(choice["value"] for choice in entry.efforts)
    raise EffortNotSupported(
        model_id=entry.model_id,
        effort=effort,
        fix=f"It offers {offered}." if offered else "It takes no effort: leave the field out.",
    )


def create_entry(
    access: Access,
    *,
    provider: str,
    model_id: str,
    display_name: str,
    description: str = "",
    context_window_tokens: int | None = None,
    max_output_tokens: int | None = None,
    capabilities: dict[str, Any] | None = None,
    effort_levels: list[str] | None = None,
) -> tuple[CatalogEntry, bool]:
    """
    Add a model to the organization's own catalog. Return it, and whether it was created.

    If the id, or a model of which it is another name, is already an entry of the platform or the organization,
    that entry is returned unchanged.
    Facts that are not given are copied from the same model under another snapshot date; others stay
    unknown. The entry has no price, so the platform's keys do not serve it.

    :raises FieldError: if a value is wrong
    :raises LimitReached: if the organization has added as many models as it may
    """
    if not may_create(access):
        raise NotPermitted
    spec = find_spec(provider)
    if not MODEL_ID.fullmatch(model_id):
        raise FieldError(
            pointer="/modelId",
            reason="A model id has 1 to 128 letters, digits and . _ : / @ -, and begins with a letter or digit.",
        )
    display_name = clean_name(display_name, pointer="/displayName")
    description = description.strip()
    if len(description) > DESCRIPTION_LENGTH:
        raise FieldError(pointer="/description", reason=f"A description has at most {DESCRIPTION_LENGTH} characters.")
    check_tokens(context_window_tokens, pointer="/contextWindow")
    check_tokens(max_output_tokens, pointer="/maxOutputTokens")
    if capabilities is not None:
        check_capabilities(capabilities)
    if effort_levels:
        check_effort_levels(effort_levels, capabilities or {})

    with durable():
        known = find_named([(provider, model_id)], org=access.org)
        if known:
            return known[provider, model_id], False

        row_limits.require_room(access.org, CatalogEntry.objects.filter(org=access.org), row_limits.OWN_MODELS)
        given = {
            "context_window_tokens": context_window_tokens,
            "max_output_tokens": max_output_tokens,
            "capabilities": capabilities,
            "effort_levels": effort_levels,
        }
        facts = facts_of_same_model(provider, model_id)
        facts |= {name: value for name, value in given.items() if value is not None}
        entry, created = CatalogEntry.objects.get_or_create(
            org=access.org,
            provider=provider,
            model_id=model_id,
            defaults={
                "display_name": display_name,
                "description": description,
                "auth_modes": [mode.value for mode in spec.auth_modes],
                "source": f"Added by {access.user.email}"[:400],
                **facts,
            },
        )
        if created:
            record(access, "catalog_entry.created", object_id=model_id, provider=provider)
    return entry, created


def delete_entry(access: Access, *, provider: str | None, model_id: str) -> None:
    """
    Remove a model from the organization's own catalog. Its past runs and costs stay.

    :raises ModelOfPlatform: if the name means an entry of the platform
    :raises NotFound: if the name means no entry
    :raises InUse: if a profile names it
    """
    if not may_create(access):
        raise NotPermitted
    with durable():
        # Includes an entry that a platform entry of the same name now hides.
        own = CatalogEntry.objects.filter(org=access.org, model_id=model_id.replace("\0", ""))
        entry = (own if provider is None else own.filter(provider=provider)).order_by("provider").first()
        entry = entry or _own_entry(access.org, provider=provider, model_id=model_id)
        entry_leaves.send(sender=CatalogEntry, entry=entry)
        record(access, "catalog_entry.deleted", object_id=entry.model_id, provider=entry.provider)
        entry.delete()


def find_spec(provider: str) -> ProviderSpec:
    """
    Find the spec of a provider.

    :raises FieldError: if the provider is unknown
    """
    spec = PROVIDERS.get(provider)
    if spec is None:
        known = ", ".join(sorted(PROVIDERS))
        raise FieldError(pointer="/provider", reason=f"Provider '{provider}' is not known. Known: {known}.")
    return spec


def _own_entry(org: Org, *, provider: str | None, model_id: str) -> CatalogEntry:
    """
    Find an organization's own entry by another of its names.

    :raises ModelOfPlatform: if the name means an entry of the platform
    :raises NotFound: if it means none
    """
    try:
        entry = find_entry(org=org, provider=provider, model_id=model_id)
    except ModelNotInCatalog as refusal:
        raise NotFound from refusal
    if entry.org_id is None:
        raise ModelOfPlatform(model_id=model_id)
    return entry


def _listed_as(model_id: str, listed: Iterable[str]) -> str:
    """The id in a provider's list for a name without its snapshot date, or with `-latest`."""
    ids = sorted(listed, reverse=True)
    if model_id in ids:
        return ""
    name = SNAPSHOT_DATE.sub("", model_id.removesuffix("-latest"))
    return next((listed_id for listed_id in ids if SNAPSHOT_DATE.sub("", listed_id) == name), "")


def _create_command(provider: str | None, model_id: str) -> str:
    if provider is None and len(PROVIDERS) == 1:
        (provider,) = PROVIDERS
    # Users paste this into a shell, so only text in the form of an id is included.
    shown_provider = provider if provider in PROVIDERS else "…"
    shown_id = model_id if MODEL_ID.fullmatch(model_id) else "…"
    return f'rensei catalog create --provider {shown_provider} --model-id "{shown_id}" --display-name "…"'


def _key(entry: CatalogEntry) -> tuple[str, str]:
    return entry.provider, entry.model_id


def _next(entry: CatalogEntry) -> tuple[str, str]:
    return entry.provider, entry.replaced_by


def _is_retired(entry: CatalogEntry, today: date) -> bool:
    return entry.lifecycle_on(today) is CatalogEntry.Lifecycle.RETIRED


def _end_of_chain(
    entry: CatalogEntry, replacements: dict[tuple[str, str], CatalogEntry], today: date
) -> CatalogEntry | None:
    passed = set()
    while _is_retired(entry, today):
        passed.add(_key(entry))
        replacement = replacements.get(_next(entry))
        if replacement is None or _key(replacement) in passed:
            return None
        entry = replacement
    return entry
