"""Loading the data files: repeatable, never editing a price, leaving organizations' entries alone."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from catalog import loading
from catalog.datafile import FOLDER, DataFileInvalid
from catalog.lookup import find_named
from catalog.models import CatalogEntry, CatalogSetting, ModelAlias, Price
from catalog.pricing import bands_in_force
from catalog.services import load_catalog
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now

CLAUDE = FOLDER / "claude.json"


@pytest.fixture
def folder_with(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder that holds the data file with one change, which gets the named entry."""

    def make(model_id: str, change: Callable[[dict[str, Any]], Any]) -> Path:
        content = json.loads(CLAUDE.read_text())
        change(next(entry for entry in content["entries"] if entry["modelId"] == model_id))
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        (folder / "claude.json").write_text(json.dumps(content))
        return folder

    return make


def _rows() -> list[dict[str, Any]]:
    return [*CatalogEntry.objects.order_by("pk").values(), *Price.objects.order_by("pk").values()]


@pytest.mark.django_db
class TestLoadCatalog:
    def test_makes_platform_entries_of_all_models(self):
        report = load_catalog()

        assert len(report.created) == report.total == CatalogEntry.objects.filter(org=None).count() == 32
        assert Price.objects.count() == 32

    def test_changes_nothing_the_second_time(self):
        load_catalog()
        before = _rows()

        report = load_catalog()

        assert not report.changed
        assert _rows() == before
        assert AuditEvent.objects.filter(action="catalog.loaded").count() == 1

    def test_writes_with_few_queries(self, django_assert_max_num_queries):
        with django_assert_max_num_queries(16):
            load_catalog()

    def test_updates_a_changed_fact_and_says_so(self, folder_with):
        load_catalog()
        folder = folder_with("claude-opus-4-5-20251101", lambda entry: entry.update(retiresOn="2027-01-24"))

        report = load_catalog(folder=folder)

        assert report.updated == {"claude-opus-4-5-20251101": ["retires_on"]}
        assert not report.created
        assert not report.priced

    def test_takes_a_new_model_s_id_from_an_alias(self, folder_with):
        """An alias that an operator added would hide the model that a later file has under that id."""
        load_catalog()
        other = CatalogEntry.objects.get(model_id="claude-opus-5-5")
        ModelAlias.objects.create(entry=other, provider="claude", name="claude-nova-9")
        folder = folder_with("claude-haiku-5-5", lambda entry: entry.update(modelId="claude-nova-9"))

        load_catalog(folder=folder)

        assert not ModelAlias.objects.filter(name="claude-nova-9").exists()
        assert find_named([("claude", "claude-nova-9")], org=None)

    def test_moves_an_alias_to_the_model_that_the_file_has_it_for(self):
        load_catalog()
        other = CatalogEntry.objects.get(model_id="claude-opus-5-5")
        ModelAlias.objects.filter(name="claude-haiku-4-5").update(entry=other)

        report = load_catalog()

        assert report.updated == {"claude-haiku-4-5-20251001": ["aliases"]}
        assert ModelAlias.objects.get(name="claude-haiku-4-5").entry.model_id == "claude-haiku-4-5-20251001"
        assert not load_catalog().changed

    def test_keeps_an_alias_that_an_operator_added(self):
        load_catalog()
        entry = CatalogEntry.objects.get(model_id="claude-opus-5-5")
        ModelAlias.objects.create(entry=entry, provider="claude", name="opus")

        assert not load_catalog().changed
        assert ModelAlias.objects.filter(name="opus").exists()

    def test_adds_a_model(self, folder_with):
        load_catalog(folder=folder_with("claude-opus-5-5", lambda entry: entry.update(modelId="claude-opus-6")))

        report = load_catalog()

        assert report.created == ["claude-opus-5-5"]
        assert CatalogEntry.objects.filter(model_id="claude-opus-6").exists()

    def test_adds_a_new_price_beside_the_old(self, folder_with):
        load_catalog()
        folder = folder_with(
            "claude-opus-5-5",
            lambda entry: entry["prices"].append(
                {**entry["prices"][0], "effectiveFrom": "2027-01-01", "inputCents": 300}
            ),
        )

        report = load_catalog(folder=folder)

        assert report.priced == {"claude-opus-5-5": ["2027-01-01"]}
        entry = CatalogEntry.objects.get(model_id="claude-opus-5-5")
        assert bands_in_force(entry, moment=datetime(2026, 12, 31, tzinfo=UTC))[0].input == 4_000_000
        assert bands_in_force(entry, moment=datetime(2027, 1, 1, tzinfo=UTC))[0].input == 3_000_000

    def test_supersedes_a_wrong_price_instead_of_editing_it(self, folder_with):
        load_catalog(folder=folder_with("claude-haiku-5-5", lambda entry: entry["prices"][1].update(outputCents=200)))
        wrong = list(Price.objects.order_by("pk").values())

        report = load_catalog()

        assert list(report.priced) == ["claude-haiku-5-5"]
        assert list(Price.objects.order_by("pk").values())[: len(wrong)] == wrong
        entry = CatalogEntry.objects.get(model_id="claude-haiku-5-5")
        assert [band.output for band in bands_in_force(entry, moment=database_now())] == [500_000, 2_500_000]
        assert not load_catalog().changed

    def test_corrects_a_price_twice(self, folder_with):
        load_catalog()
        cheaper = folder_with("claude-opus-5-5", lambda entry: entry["prices"][0].update(inputCents=200))
        load_catalog(folder=cheaper)

        report = load_catalog()

        assert list(report.priced) == ["claude-opus-5-5"]
        entry = CatalogEntry.objects.get(model_id="claude-opus-5-5")
        assert bands_in_force(entry, moment=database_now())[0].input == 4_000_000
        assert not load_catalog().changed

    def test_leaves_an_operator_s_price_in_force(self):
        load_catalog()
        own = Price.objects.get(entry__model_id="claude-opus-5-5")
        own.pk, own.input_microdollars, own.source = None, 3_500_000, "Our contract"
        own.effective_from = datetime(2026, 11, 1, tzinfo=UTC)
        own.save()

        report = load_catalog()

        assert not report.changed
        assert bands_in_force(own.entry, moment=database_now())[0].input == 3_500_000

    def test_leaves_an_organization_s_entry_alone(self, acme):
        own = CatalogEntry.objects.create(
            org=acme, provider="claude", model_id="claude-opus-5-5", display_name="Ours", auth_modes=["byok"]
        )

        load_catalog()

        own.refresh_from_db()
        assert (own.display_name, own.context_window_tokens, own.auth_modes) == ("Ours", None, ["byok"])
        assert not own.prices.exists()

    def test_leaves_an_entry_that_left_the_file(self):
        load_catalog()
        CatalogEntry.objects.create(provider="claude", model_id="claude-next", display_name="Next")

        load_catalog()

        assert CatalogEntry.objects.filter(model_id="claude-next").exists()

    def test_writes_nothing_of_a_file_that_it_refuses(self, folder_with):
        with pytest.raises(DataFileInvalid):
            load_catalog(folder=folder_with("claude-opus-5-5", lambda entry: entry["prices"][0].update(inputCents=4)))

        assert not CatalogEntry.objects.exists()

    def test_writes_nothing_when_it_fails_midway(self, monkeypatch):
        def fail(*args: Any, **options: Any) -> None:
            raise RuntimeError("power cut")

        monkeypatch.setattr(loading, "_write_prices", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            load_catalog()

        assert not CatalogEntry.objects.exists()
        assert not CatalogSetting.objects.exists()


@pytest.mark.django_db
class TestTheCommand:
    def test_says_what_changed_and_then_that_nothing_did(self):
        first, second = StringIO(), StringIO()

        call_command("load_catalog", stdout=first)
        call_command("load_catalog", stdout=second)

        assert "added   claude-opus-5-5\n" in first.getvalue()
        assert "priced  claude-sonnet-5-5 from 2026-09-28, 2026-10-07\n" in first.getvalue()
        assert second.getvalue() == "32 models in the catalog's data, all up to date.\n"

    def test_refuses_a_bad_file_in_one_sentence(self, monkeypatch, folder_with):
        folder = folder_with("claude-opus-5-5", lambda entry: entry["prices"][0].update(inputCents=4))
        monkeypatch.setattr(
            "catalog.management.commands.load_catalog.load_catalog", lambda: load_catalog(folder=folder)
        )

        with pytest.raises(CommandError, match="Is it in US cents per million tokens"):
            call_command("load_catalog")
