"""The number of bytes that an organization's profiles store."""

from collections.abc import Mapping
from typing import Any

from django.db.models import Sum

from profiles.models import ModelProfile
from rensei.orgs import storage


def of_profile(*, system: str, provider_config: dict[str, Any]) -> int:
    return storage.ROW_BYTES + storage.size_of(system, provider_config)


def let_go(*, instance: ModelProfile, **_signal: object) -> None:
    """Release the bytes that a profile stored, before it is deleted, by itself or with its project."""
    storage.change({instance.org_id: (-instance.stored_bytes, 0)})


def by_org() -> Mapping[str, tuple[int, int]]:
    """Return the stored bytes of each organization's profiles."""
    sums = ModelProfile.objects.values_list("org_id").annotate(Sum("stored_bytes"))
    return {org_id: (used, 0) for org_id, used in sums}
