"""
Find the catalog entry that served a part of a call, and the prices of that part.

An answer names the model that made it. It can differ from the served model of the run, for example by a fallback of the
provider or a tool that calls another model. Its prices are those at the run's creation, as for the rest of the run.
"""

from dataclasses import dataclass, replace

from catalog import pricing
from catalog.lookup import find_named
from catalog.models import CatalogEntry
from catalog.pricing import UnitPrices
from catalog.providers import PROVIDERS
from rensei.core.auth_modes import PLATFORM_MODES
from rensei.core.usage import UsagePart
from rensei.dispatch.models import Run


@dataclass(frozen=True, kw_only=True)
class Served:
    """
    A model by its name in the ledger, and its price bands.

    `is_known` is False without an entry in the catalog. `is_sure` is False if the price is a substitute, or missing
    because there is no entry.
    """

    model_id: str
    bands: list[UnitPrices]
    is_known: bool = True
    is_sure: bool = True


def find_served(run: Run, name: str) -> Served:
    """
    Find the model for a name in the answer to a run. The name of the run's served model needs no lookup.

    A model without a catalog entry has no price. In a platform mode, no price would mean no charge, so the prices
    of the admitted model apply.
    """
    admitted = [UnitPrices.from_dict(band) for band in run.prices or []]
    if name in {"", run.served_model_id}:
        return Served(model_id=run.served_model_id, bands=admitted)
    entry = _entry(run, name)
    if entry is not None and entry.model_id == run.served_model_id:
        return Served(model_id=run.served_model_id, bands=admitted)
    prices = pricing.price_lists([entry], moment=run.created_at).get(entry.pk) if entry else None
    model_id = entry.model_id if entry else name
    if run.auth_mode in PLATFORM_MODES and (entry is None or entry.org_id is not None or prices is None):
        return Served(model_id=model_id, bands=admitted, is_known=entry is not None, is_sure=False)
    is_known = entry is not None
    return Served(model_id=model_id, bands=prices.bands if prices else [], is_known=is_known, is_sure=is_known)


def prices_for(run: Run, served: Served, part: UsagePart) -> tuple[UnitPrices | None, bool]:
    """Return the prices of a part of a call, None if it has none, and whether its amount is certain."""
    is_sure = served.is_sure and not part.estimated
    if not served.bands:
        return None, is_sure
    band = pricing.band_for(served.bands, prompt_tokens=part.usage.prompt_tokens)
    prices = band.times(part.price_factor)
    # A band applies to one prompt. The bands of several prompts are not reported, so the most expensive applies.
    is_sure &= part.samplings == 1 or band.above_prompt_tokens == 0
    if part.usage.web_search_requests and prices.web_search is None:
        return with_search_price(run, prices), False
    return prices, is_sure


def with_search_price(run: Run, prices: UnitPrices) -> UnitPrices:
    """
    Return the prices of a call that has searched the web. Searches without a price have the provider's highest one in
    a platform mode, where a call without an amount would not be charged at all.
    """
    if prices.web_search is not None or run.auth_mode not in PLATFORM_MODES:
        return prices
    return replace(prices, web_search=PROVIDERS[run.provider].dearest_search_picodollars)


def _entry(run: Run, name: str) -> CatalogEntry | None:
    named = (run.provider, name)
    return find_named([named], org=run.org).get(named)
