"""Updates the platform's entries and prices from the data files."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from catalog.datafile import FOLDER, DataFile, ListedModel, PriceSet, band_of, read_all
from catalog.models import CatalogEntry, CatalogSetting, ModelAlias, Price
from rensei.audit.record import record_system
from rensei.core.clock import database_now
from rensei.core.transactions import durable

# Marks the rows that came from a data file, to distinguish them from rows added by an operator.
ORIGIN = "Catalog data:"


@dataclass(kw_only=True)
class LoadReport:
    """The changes made by a load: model ids, the fields of changed entries, and the first days of added prices."""

    created: list[str] = field(default_factory=list)
    updated: dict[str, list[str]] = field(default_factory=dict)
    priced: dict[str, list[str]] = field(default_factory=dict)
    total: int = 0

    @property
    def changed(self) -> bool:
        return bool(self.created or self.updated or self.priced)


def load_catalog(*, folder: Path = FOLDER) -> LoadReport:
    """
    Load the data files of all providers into the platform's entries. It is idempotent.

    Organizations' own entries and existing prices are not changed: a changed price is added as a new row.

    :raises DataFileInvalid: if a file must not be loaded; nothing is written then
    """
    files = read_all(folder)
    report = LoadReport()
    with durable():
        _lock_settings()
        now = database_now()
        for file in files:
            entries = _write_entries(file, report)
            _write_aliases(file, entries, report)
            _write_prices(file, entries, report, now=now)
        if report.changed:
            record_system(
                "load_catalog",
                "catalog.loaded",
                object_id="platform",
                created=report.created,
                updated=report.updated,
                priced=report.priced,
            )
    return report


def _lock_settings() -> None:
    """Lock the one row of the settings, so that servers that start at the same time load one after the other."""
    CatalogSetting.objects.get_or_create(pk=1)
    CatalogSetting.objects.select_for_update().get(pk=1)


def _write_entries(file: DataFile, report: LoadReport) -> dict[str, CatalogEntry]:
    entries = {entry.model_id: entry for entry in CatalogEntry.objects.filter(org=None, provider=file.provider)}
    new, changed = [], []
    for model in file.models:
        model_id = model.facts["model_id"]
        entry = entries.get(model_id)
        if entry is None:
            new.append(CatalogEntry(provider=file.provider, **model.facts))
            report.created.append(model_id)
        elif fields := _differences(entry, model):
            changed.append(entry)
            report.updated[model_id] = fields
    report.total += len(file.models)

    CatalogEntry.objects.bulk_create(new)
    if changed:
        CatalogEntry.objects.bulk_update(changed, [*file.models[0].facts])
    return {**entries, **{entry.model_id: entry for entry in new}}


def _write_aliases(file: DataFile, entries: dict[str, CatalogEntry], report: LoadReport) -> None:
    """
    Set the models' aliases to those in the file. An alias that an operator added and the file does not list is kept.

    A name that has become a model's id is no longer an alias.
    """
    ids = {model.facts["model_id"] for model in file.models}
    stored = {alias.name: alias for alias in ModelAlias.objects.filter(provider=file.provider)}
    if over := [alias.pk for name, alias in stored.items() if name in ids]:
        ModelAlias.objects.filter(pk__in=over).delete()

    new = []
    for model in file.models:
        entry = entries[model.facts["model_id"]]
        missing = [name for name in model.aliases if name not in stored or stored[name].entry_id != entry.pk]
        new += [ModelAlias(entry=entry, provider=file.provider, name=name) for name in missing]
        if missing and entry.model_id not in report.created:
            report.updated[entry.model_id] = [*report.updated.get(entry.model_id, []), "aliases"]
    ModelAlias.objects.bulk_create(
        new, update_conflicts=True, unique_fields=["provider", "name"], update_fields=["entry"]
    )


def _differences(entry: CatalogEntry, model: ListedModel) -> list[str]:
    """Set the file's facts on a stored entry, and return the names of the changed fields."""
    fields = [name for name, value in model.facts.items() if getattr(entry, name) != value]
    for name in fields:
        setattr(entry, name, model.facts[name])
    return fields


def _write_prices(file: DataFile, entries: dict[str, CatalogEntry], report: LoadReport, *, now: datetime) -> None:
    stored: dict[int, dict[datetime, list[Price]]] = {}
    ours = Price.objects.filter(entry__org=None, entry__provider=file.provider).order_by("above_prompt_tokens")
    for price in ours:
        stored.setdefault(price.entry_id, {}).setdefault(price.effective_from, []).append(price)

    rows: list[Price] = []
    for model in file.models:
        entry = entries[model.facts["model_id"]]
        for price_set in _missing(model, stored.get(entry.pk, {}), now=now):
            rows += [_row(entry, price_set.effective_from, band) for band in price_set.bands]
            report.priced.setdefault(entry.model_id, []).append(price_set.effective_from.date().isoformat())
    Price.objects.bulk_create(rows)


def _missing(model: ListedModel, stored: dict[datetime, list[Price]], *, now: datetime) -> list[PriceSet]:
    """
    List the price sets of a model that must be added.

    Rows are never edited. So if the file's own price in force differs from the file's present numbers, the
    corrected numbers begin now. An operator's price in force takes precedence over the file's.
    """
    missing = [price_set for price_set in model.price_sets if price_set.effective_from not in stored]

    bands_since = {since: [band_of(price) for price in prices] for since, prices in stored.items()}
    bands_since |= {price_set.effective_from: price_set.bands for price_set in missing}
    begun = [since for since in bands_since if since <= now]
    listed = [price_set for price_set in model.price_sets if price_set.effective_from <= now]
    if not listed:
        return missing

    in_force = max(begun)
    is_ours = all(price.source.startswith(ORIGIN) for price in stored.get(in_force, []))
    if is_ours and bands_since[in_force] != listed[-1].bands:
        missing.append(PriceSet(effective_from=now, bands=listed[-1].bands))
    return missing


def _row(entry: CatalogEntry, since: datetime, band: dict[str, Any]) -> Price:
    return Price(entry=entry, effective_from=since, source=f"{ORIGIN} {entry.source}"[:400], **band)
