"""
`GET /v1/models`: the models and profiles that a request may name, in Anthropic's format.

Source: https://platform.claude.com/docs/en/api/models-list
"""

from collections.abc import Collection, Iterable
from datetime import date
from typing import Any
from urllib.parse import parse_qs

from catalog.lookup import find_named
from catalog.models import CatalogEntry
from catalog.services import served_entries
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.core.clock import database_now
from rensei.core.errors import FieldError, NotFound
from rensei.core.limits import limit
from rensei.gateway import model_info
from rensei.gateway.routing import PROFILE_PREFIX, PROVIDER
from rensei.orgs.access import Access

_Lifecycle = CatalogEntry.Lifecycle
PAGE = 20
PAGE_MAX = limit(
    1000, "models", what="Models of one page of `GET /v1/models`", told="the caller: `has_more`, and the next page"
)


def page(access: Access, query: str) -> dict[str, Any]:
    """
    List the models of the catalog, newest first, and then the caller's profiles.

    :raises FieldError: if a parameter has an invalid value
    """
    given = parse_qs(query)
    asked = {name: values[-1] for name, values in given.items()}
    limit = _limit(asked.get("limit", str(PAGE)))
    models = _models(access, _stages(given.get("lifecycle[]", [_Lifecycle.ACTIVE, _Lifecycle.DEPRECATED])))
    ids = [model["id"] for model in models]
    if "after_id" in asked and "before_id" in asked:
        raise FieldError(pointer="/query/before_id", reason="Send after_id or before_id, not both.")
    start, end = 0, len(models)
    if "after_id" in asked:
        start = _place(ids, asked["after_id"], name="after_id") + 1
        end = min(end, start + limit)
    elif "before_id" in asked:
        end = _place(ids, asked["before_id"], name="before_id")
        start = max(0, end - limit)
    else:
        end = min(end, limit)
    found = models[start:end]
    return {
        "data": found,
        "first_id": found[0]["id"] if found else None,
        "last_id": found[-1]["id"] if found else None,
        "has_more": start > 0 if "before_id" in asked else end < len(models),
    }


def one(access: Access, model_id: str) -> dict[str, Any]:
    """
    Return a profile, or a model by any of its names, including retired models.

    :raises NotFound: if it does not exist or the caller may not use it
    """
    if model_id.startswith(PROFILE_PREFIX):
        profile = profiles.find_profile(access, model_id, project=access.project)
        if profile.provider != PROVIDER:
            raise NotFound
        (info,) = _profiles(access, [profile], today=database_now().date())
        return info
    for entry in find_named([(PROVIDER, model_id)], org=access.org).values():
        return model_info.of_entry(entry, today=database_now().date())
    raise NotFound


def _models(access: Access, stages: Collection[str]) -> list[dict[str, Any]]:
    today = database_now().date()
    entries = CatalogEntry.objects.visible_to(access.org).filter(provider=PROVIDER)
    offered = [entry for entry in entries if entry.lifecycle_on(today) in stages]
    offered.sort(key=lambda entry: (entry.released_on or today, entry.model_id), reverse=True)
    own = profiles.visible_profiles(access).filter(provider=PROVIDER).order_by("name")
    return [model_info.of_entry(entry, today=today) for entry in offered] + _profiles(access, own, today=today)


def _profiles(access: Access, own: Iterable[ModelProfile], *, today: date) -> list[dict[str, Any]]:
    own = list(own)
    entries = find_named({(profile.provider, profile.model_id) for profile in own}, org=access.org)
    served = served_entries(entries.values(), org=access.org, today=today)
    named = [(profile, entries.get((profile.provider, profile.model_id))) for profile in own]
    return [
        model_info.of_profile(profile, (served[entry.pk] or entry) if entry else None, today=today)
        for profile, entry in named
    ]


def _stages(given: list[str]) -> list[str]:
    known = ", ".join(_Lifecycle.values)
    if any(stage not in _Lifecycle.values for stage in given):
        raise FieldError(pointer="/query/lifecycle", reason=f"`lifecycle[]` is one of {known}.")
    return given


def _limit(given: str) -> int:
    if not (given.isascii() and given.isdecimal() and len(given) <= 4 and 1 <= int(given) <= PAGE_MAX):
        raise FieldError(pointer="/query/limit", reason=f"`limit` is a number from 1 to {PAGE_MAX}.")
    return int(given)


def _place(ids: list[str], model_id: str, *, name: str) -> int:
    try:
        return ids.index(model_id)
    except ValueError:
        raise FieldError(pointer=f"/query/{name}", reason=f"There is no model '{model_id}'.") from None
