"""Why a key pool has no key for a model: what members' pages say beside the refusal, which names no cause."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from django.db.models import QuerySet

from integrations.keys.platform import serves
from integrations.models import PlatformKey


class Cause(StrEnum):
    EMPTY = "empty"
    NOT_SERVED = "not-served"
    COOLING = "cooling"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, kw_only=True)
class Outage:
    """The cause, and the time from which a cooling key is used again."""

    cause: Cause
    until: datetime | None = None


def known_keys() -> QuerySet[PlatformKey]:
    """List the keys of all pools, without the keys themselves."""
    return PlatformKey.objects.defer("sealed_key")


def outage_of(keys: Iterable[PlatformKey], *, provider: str, pool: str, model_id: str, now: datetime) -> Outage | None:
    """
    Find out why no key of a pool may call a model now. None if one may, or if all that may are paused.

    `keys` are those of the platform. Members read this, so it names no key.
    """
    active = [key for key in keys if key.active and (key.provider, key.pool) == (provider, pool)]
    if not active:
        return Outage(cause=Cause.EMPTY)
    serving = [key for key in active if serves(key, model_id)]
    if not serving:
        return Outage(cause=Cause.NOT_SERVED)
    ends = [key.cools_until(model_id, now) for key in serving if key.health != PlatformKey.Health.QUARANTINED]
    if not ends:
        return Outage(cause=Cause.QUARANTINED)
    cooling = [end for end in ends if end is not None]
    return Outage(cause=Cause.COOLING, until=min(cooling)) if len(cooling) == len(ends) else None
