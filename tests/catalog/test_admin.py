"""What operators may do to the catalog in the admin."""

from datetime import timedelta

import pytest
from django.utils import timezone

from catalog.admin import PRICES_MAX
from catalog.models import CatalogEntry, CatalogSetting, Price
from rensei.audit.models import AuditEvent

pytestmark = pytest.mark.usefixtures("catalog")
PRICE = {
    "above_prompt_tokens": 0,
    "input_microdollars": 1,
    "output_microdollars": 2,
    "cache_write_5m_microdollars": 3,
    "cache_write_1h_microdollars": 4,
    "cache_read_microdollars": 5,
    "web_search_picodollars": "",
    "source": "Our contract",
}


def _begins(moment):
    return {"effective_from_0": f"{moment:%Y-%m-%d}", "effective_from_1": f"{moment:%H:%M:%S}"}


class TestPrices:
    def test_are_added_for_the_future(self, page_as, grace):
        entry = CatalogEntry.objects.get(model_id="claude-opus-5-5")
        body = {**PRICE, **_begins(timezone.now() + timedelta(hours=1)), "entry": entry.pk}

        answer = page_as(grace).post("/admin/catalog/price/add/", body)

        assert answer.status_code == 302, answer.context["errors"]
        assert entry.prices.filter(source="Our contract").exists()
        assert AuditEvent.objects.filter(action="price.created", object_id="claude-opus-5-5", user_id=grace.pk).exists()

    def test_do_not_begin_in_the_past(self, page_as, grace):
        entry = CatalogEntry.objects.get(model_id="claude-opus-5-5")
        body = {**PRICE, **_begins(timezone.now() - timedelta(hours=1)), "entry": entry.pk}

        answer = page_as(grace).post("/admin/catalog/price/add/", body)

        assert "A price begins in the future." in answer.content.decode()
        assert not entry.prices.filter(source="Our contract").exists()

    @pytest.mark.parametrize("column", PRICES_MAX)
    def test_are_no_higher_than_a_line_of_the_ledger_can_hold(self, page_as, grace, column):
        entry = CatalogEntry.objects.get(model_id="claude-opus-5-5")
        body = {**PRICE, **_begins(timezone.now() + timedelta(hours=1)), "entry": entry.pk}
        page = page_as(grace)

        page.post("/admin/catalog/price/add/", {**body, column: PRICES_MAX[column] + 1})
        assert not entry.prices.filter(source="Our contract").exists()

        page.post("/admin/catalog/price/add/", {**body, column: PRICES_MAX[column]})
        assert entry.prices.filter(source="Our contract").exists()

    def test_are_not_given_to_an_organization_s_model(self, page_as, grace, acme):
        own = CatalogEntry.objects.create(org=acme, provider="claude", model_id="x", display_name="X")
        body = {**PRICE, **_begins(timezone.now() + timedelta(hours=1)), "entry": own.pk}

        page_as(grace).post("/admin/catalog/price/add/", body)

        assert not own.prices.exists()

    @pytest.mark.parametrize("verb", ["change", "delete"])
    def test_are_neither_changed_nor_deleted(self, page_as, grace, verb):
        price = Price.objects.first()

        answer = page_as(grace).post(f"/admin/catalog/price/{price.pk}/{verb}/", {**PRICE, "post": "yes"})

        assert answer.status_code == 403
        assert Price.objects.filter(pk=price.pk).values().get() == {
            key: value for key, value in price.__dict__.items() if key != "_state"
        }


class TestEntries:
    def test_are_listed(self, page_as, grace):
        answer = page_as(grace).get("/admin/catalog/catalogentry/")

        assert answer.status_code == 200
        assert "claude-opus-4-1-20250514" in answer.content.decode()

    def test_of_the_data_files_are_only_read(self, page_as, grace):
        entry = CatalogEntry.objects.get(model_id="claude-opus-5-5")

        answer = page_as(grace).post(f"/admin/catalog/catalogentry/{entry.pk}/change/", {"display_name": "Mine"})

        assert answer.status_code == 403

    def test_are_added_and_changed_by_operators(self, page_as, grace):
        page = page_as(grace)
        body = {
            "provider": "claude",
            "model_id": "claude-opus-9",
            "display_name": "Opus 9",
            "capabilities": '{"nativeEffort": true}',
            "effort_levels": '["low"]',
            "auth_modes": '["byok"]',
        }

        answer = page.post("/admin/catalog/catalogentry/add/", body)
        assert answer.status_code == 302, answer.context["errors"]
        entry = CatalogEntry.objects.get(model_id="claude-opus-9")
        page.post(f"/admin/catalog/catalogentry/{entry.pk}/change/", {**body, "display_name": "Opus Nine"})

        entry.refresh_from_db()
        assert (entry.org, entry.display_name) == (None, "Opus Nine")
        assert set(AuditEvent.objects.filter(object_id="claude-opus-9").values_list("action", flat=True)) == {
            "catalog_entry.created",
            "catalog_entry.updated",
        }

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"auth_modes": '["local"]'}, "does not offer local"),
            ({"capabilities": '{"visions": true}'}, "This capability is not known."),
            ({"effort_levels": '["low"]'}, "Efforts need a model that takes them"),
        ],
    )
    def test_are_checked(self, page_as, grace, change, sentence):
        body = {"provider": "claude", "model_id": "m", "display_name": "M", "auth_modes": '["byok"]', **change}

        answer = page_as(grace).post("/admin/catalog/catalogentry/add/", body)

        assert sentence in answer.content.decode()
        assert not CatalogEntry.objects.filter(model_id="m").exists()


class TestTheSetting:
    def test_turns_redirects_off(self, page_as, grace):
        answer = page_as(grace).post("/admin/catalog/catalogsetting/1/change/", {})

        assert answer.status_code == 302
        assert CatalogSetting.objects.get().redirect_retired is False
        assert AuditEvent.objects.get(action="catalog_setting.updated").detail == {"redirect_retired": False}

    def test_is_one(self, page_as, grace):
        assert page_as(grace).get("/admin/catalog/catalogsetting/add/").status_code == 403
