"""
`GET /v1/models`: what a token may name as its model, in Anthropic's shape.

Source: https://platform.claude.com/docs/en/api/models-list
"""

from typing import Any
from urllib.parse import parse_qs

from django.db import close_old_connections

from catalog.models import CatalogEntry
from profiles import services as profiles
from rensei.core.clock import database_now
from rensei.core.errors import FieldError, NotFound
from rensei.gateway.routes import PROVIDER
from rensei.orgs.access import Access

PAGE = 20
PAGE_MAX = 1000


def page(access: Access, query: str) -> dict[str, Any]:
    """
    List the models of the catalog, the newest first, and then the caller's profiles.

    :raises FieldError: if a parameter is not one that there is
    """
    asked = {name: values[-1] for name, values in parse_qs(query).items()}
    limit = _limit(asked.get("limit", str(PAGE)))
    models = _models(access)
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
    """:raises NotFound: if the caller may not name it"""
    for model in _models(access):
        if model["id"] == model_id:
            return model
    raise NotFound


def _models(access: Access) -> list[dict[str, Any]]:
    close_old_connections()
    today = database_now().date()
    entries = CatalogEntry.objects.visible_to(access.org).filter(provider=PROVIDER)
    offered = [entry for entry in entries if entry.lifecycle_on(today) != CatalogEntry.Lifecycle.RETIRED]
    named = [
        _model(entry.model_id, entry.display_name, created_at=f"{entry.released_on or today}T00:00:00Z")
        for entry in sorted(offered, key=lambda entry: (entry.released_on or today, entry.model_id), reverse=True)
    ]
    own = profiles.visible_profiles(access).filter(provider=PROVIDER).order_by("name")
    return named + [
        _model(profile.public_id, profile.name, created_at=profile.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"))
        for profile in own
    ]


def _model(model_id: str, name: str, *, created_at: str) -> dict[str, Any]:
    return {"type": "model", "id": model_id, "display_name": name, "created_at": created_at}


def _limit(given: str) -> int:
    if not (given.isascii() and given.isdecimal() and 1 <= int(given) <= PAGE_MAX):
        raise FieldError(pointer="/query/limit", reason=f"`limit` is a number from 1 to {PAGE_MAX}.")
    return int(given)


def _place(ids: list[str], model_id: str, *, name: str) -> int:
    try:
        return ids.index(model_id)
    except ValueError:
        raise FieldError(pointer=f"/query/{name}", reason=f"There is no model '{model_id}'.") from None
