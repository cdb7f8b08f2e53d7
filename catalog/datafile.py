"""Reads `catalog/data/<provider>.json`, and refuses a file with implausible prices."""

import json
from dataclasses import dataclass
from datetime import date, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from catalog.models import Price
from catalog.providers import PROVIDERS
from rensei.core.api import camel
from rensei.core.money import microdollars_per_mtok
from rensei.core.periods import start_of
from rensei.core.token_classes import OF_TOKENS, TOKEN_CLASSES

FOLDER = Path(__file__).parent / "data"
CURRENCY = "USD"
PRICE_UNIT = "US cents per million tokens"
# A price may differ this far from the vetted reference of its model line. Dollars mistaken for cents are 1 % of it.
LEAST_PERCENT_OF_REFERENCE = 20
MOST_PERCENT_OF_REFERENCE = 500
PICODOLLARS_PER_CENT = 10**10
SEARCHES_PER_PRICE = 1000


@dataclass(frozen=True, kw_only=True)
class PriceSet:
    """The price bands that begin at the same time."""

    effective_from: datetime
    bands: list[dict[str, int | None]]


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """One model of a data file, with the names of `CatalogEntry`'s columns."""

    facts: dict[str, Any]
    aliases: list[str]
    price_sets: list[PriceSet]


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """The content of a data file: the models of one provider."""

    provider: str
    models: list[ListedModel]


class DataFileInvalid(Exception):
    """A data file that must not be loaded. One sentence names the mistake, which is ours or the operator's."""


def read_all(folder: Path = FOLDER) -> list[DataFile]:
    """Read the data file of every provider in a folder."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def read(path: Path) -> DataFile:
    """
    Read one data file.

    :raises DataFileInvalid: if the provider is unknown, two models have the same name, or a price is out of bounds
    """
    content = json.loads(path.read_text(encoding="utf-8"), parse_float=str)
    provider = content["provider"]
    if provider not in PROVIDERS:
        raise DataFileInvalid(f"{path.name} describes the provider '{provider}', which has no spec.")
    if (content["currency"], content["priceUnit"]) != (CURRENCY, PRICE_UNIT):
        raise DataFileInvalid(f"{path.name} must give its prices in {CURRENCY}, in {PRICE_UNIT}.")

    names = [name for listed in content["entries"] for name in (listed["modelId"], *listed.get("aliases", ()))]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataFileInvalid(f"{path.name} lists {', '.join(repeated)} more than once.")

    references = content["priceReferences"]
    for listed in content["entries"]:
        _check_prices(listed, reference=references.get(listed["line"]))
    return DataFile(provider=provider, models=[_model(listed) for listed in content["entries"]])


def _check_prices(listed: dict[str, Any], *, reference: dict[str, Any] | None) -> None:
    for price in listed["prices"]:
        if reference is None:
            raise DataFileInvalid(f"{listed['modelId']} has a price, but its line has no vetted reference price.")
        for name, vetted in reference.items():
            percent = 100 * microdollars_per_mtok(price[name]) / microdollars_per_mtok(vetted)
            if not LEAST_PERCENT_OF_REFERENCE <= percent <= MOST_PERCENT_OF_REFERENCE:
                raise DataFileInvalid(
                    f"{name} of {listed['modelId']} is {price[name]}, which is {percent:g} % of the reference "
                    f"{vetted}. Is it in {PRICE_UNIT}?"
                )


def _model(listed: dict[str, Any]) -> ListedModel:
    return ListedModel(
        facts={
            "model_id": listed["modelId"],
            "display_name": listed["displayName"],
            "description": listed["description"],
            "line": listed["line"],
            "released_on": _day(listed["releasedOn"]),
            "deprecated_on": _day(listed["deprecatedOn"]),
            "retires_on": _day(listed["retiresOn"]),
            "replaced_by": listed["replacedBy"],
            "context_window_tokens": listed["contextWindow"],
            "max_output_tokens": listed["maxOutputTokens"],
            "capabilities": listed["capabilities"],
            "effort_levels": listed["effortLevels"],
            "auth_modes": listed["authModes"],
            "source": listed["source"],
        },
        aliases=listed.get("aliases", []),
        price_sets=[
            PriceSet(
                effective_from=start_of(date.fromisoformat(day)),
                bands=sorted((_band(price) for price in prices), key=lambda band: band["above_prompt_tokens"] or 0),
            )
            for day, prices in groupby(
                sorted(listed["prices"], key=lambda price: str(price["effectiveFrom"])),
                key=lambda price: str(price["effectiveFrom"]),
            )
        ],
    )


def _band(price: dict[str, Any]) -> dict[str, int | None]:
    search_cents = price["webSearchCentsPerThousand"]
    return {
        "above_prompt_tokens": price["abovePromptTokens"],
        **{one.in_catalog: microdollars_per_mtok(price[f"{camel(one.price)}Cents"]) for one in OF_TOKENS},
        "web_search_picodollars": (
            None if search_cents is None else search_cents * PICODOLLARS_PER_CENT // SEARCHES_PER_PRICE
        ),
    }


def band_of(price: Price) -> dict[str, int | None]:
    """Convert a stored price to the names and order of a data file's band, to compare the two."""
    names = ("above_prompt_tokens", *(one.in_catalog for one in TOKEN_CLASSES))
    return {name: getattr(price, name) for name in names}


def _day(text: str | None) -> date | None:
    return None if text is None else date.fromisoformat(text)
