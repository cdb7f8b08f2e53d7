"""Profiles for display and REST: with their model's lifecycle today and the model that serves it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from catalog.lookup import find_named
from catalog.services import served_entries
from profiles.models import ModelProfile
from rensei.orgs.models import Org


@dataclass(frozen=True, kw_only=True)
class PresentedProfile:
    """
    A profile with its model.

    `lifecycle` is None if the model is no longer in the catalog, and `served_model` if no model serves it.
    """

    profile: ModelProfile
    lifecycle: str | None
    served_model: str | None


def present(profiles: Iterable[ModelProfile], *, org: Org, today: date) -> list[PresentedProfile]:
    """Present many profiles on a day, with a fixed number of queries for all of them."""
    profiles = list(profiles)
    entries = find_named({(profile.provider, profile.model_id) for profile in profiles}, org=org)
    served = served_entries(entries.values(), org=org, today=today)
    presented = []
    for profile in profiles:
        entry = entries.get((profile.provider, profile.model_id))
        server = served[entry.pk] if entry else None
        presented.append(
            PresentedProfile(
                profile=profile,
                lifecycle=entry.lifecycle_on(today).value if entry else None,
                served_model=server.model_id if server else None,
            )
        )
    return presented
