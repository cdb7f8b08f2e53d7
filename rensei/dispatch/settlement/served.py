"""
Which entry of the catalog served a part of a call, and at which prices the part is charged.

An answer names the model that made it. Where that is not the one that was asked, as with fallbacks of the provider's
or a tool that consults another model, the prices are those in force when the run was made, as all of the run's are.
"""

from dataclasses import dataclass

from catalog import pricing
from catalog.lookup import find_named
from catalog.models import CatalogEntry
from catalog.pricing import UnitPrices
from rensei.dispatch.context import PLATFORM_MODES
from rensei.dispatch.models import Run


@dataclass(frozen=True, kw_only=True)
class Served:
    """
    A model as the ledger names it, and its bands.

    Without an entry in the catalog it is not `is_known`, and where its price is a guess, or missing for that, not
    `is_sure`.
    """

    model_id: str
    bands: list[UnitPrices]
    is_known: bool = True
    is_sure: bool = True


def find_served(run: Run, name: str) -> Served:
    """
    Find what a name in the answer to a run means. Nothing is looked up for the name of the model that was asked.

    A model that the catalog does not know has no price. Where the platform pays or bills, no price would mean free, so
    the prices of the model that was admitted stand for it.
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


def _entry(run: Run, name: str) -> CatalogEntry | None:
    named = (run.provider, name)
    return find_named([named], org=run.org).get(named)
