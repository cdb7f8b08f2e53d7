"""Entries for display and REST: with today's lifecycle, the model that serves them, and the prices in force."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from django.db.models import prefetch_related_objects

from catalog.identities import answered_by
from catalog.models import CatalogEntry
from catalog.pricing import PriceList, price_lists, wire
from catalog.services import served_entries
from rensei.core.effort import EffortChoice
from rensei.orgs.models import Org


@dataclass(frozen=True, kw_only=True)
class PresentedEntry:
    """An entry in the names of the REST contract. `served_by` is None if no model serves a retired one."""

    provider: str
    model_id: str
    aliases: list[str]
    answered_by: list[str]
    display_name: str
    description: str
    lifecycle: str
    retires_on: date | None
    replaced_by: str | None
    served_by: str | None
    context_window: int | None
    max_output_tokens: int | None
    capabilities: dict[str, Any]
    efforts: list[EffortChoice]
    auth_modes: list[str]
    pricing: dict[str, Any] | None
    source: str
    scope: str


def present(entries: Iterable[CatalogEntry], *, org: Org, now: datetime) -> list[PresentedEntry]:
    """Present many entries at a moment, with a fixed number of queries for all of them."""
    entries = list(entries)
    prefetch_related_objects(entries, "aliases")
    served = served_entries(entries, org=org, today=now.date())
    prices = price_lists(entries, moment=now)
    others = answered_by(entries)
    return [
        _present(
            entry,
            served=served[entry.pk],
            prices=prices.get(entry.pk),
            others=others.get(entry.pk, []),
            today=now.date(),
        )
        for entry in entries
    ]


def _present(
    entry: CatalogEntry,
    *,
    served: CatalogEntry | None,
    prices: PriceList | None,
    others: list[CatalogEntry],
    today: date,
) -> PresentedEntry:
    return PresentedEntry(
        provider=entry.provider,
        model_id=entry.model_id,
        aliases=sorted(alias.name for alias in entry.aliases.all()),
        answered_by=sorted(other.model_id for other in others),
        display_name=entry.display_name,
        description=entry.description,
        lifecycle=entry.lifecycle_on(today).value,
        retires_on=entry.retires_on,
        replaced_by=entry.replaced_by or None,
        served_by=served.model_id if served else None,
        context_window=entry.context_window_tokens,
        max_output_tokens=entry.max_output_tokens,
        capabilities=entry.capabilities,
        efforts=entry.efforts,
        auth_modes=entry.auth_modes,
        pricing=wire(prices.bands, prices.effective_from) if prices else None,
        source=entry.source,
        scope="platform" if entry.org_id is None else "organization",
    )
