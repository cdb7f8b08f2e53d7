"""What operators may do to the catalog in the admin."""

from datetime import timedelta

import pytest
from django.utils import timezone

from catalog.models import CatalogEntry, CatalogSetting, Identity, Price
from rensei.audit.models import AuditEvent

pytestmark = pytest.mark.usefixtures("catalog")
PRICE = {
    "above_prompt_tokens": 0,
    "input_usd": "5",
    "output_usd": "25.000001",
    "cache_write_5m_usd": "6.25",
    "cache_write_1h_usd": "10",
    "cache_read_usd": "0.5",
    "web_search_usd": "",
    "source": "Our contract",
}


ADD = "/admin/catalog/price/add/"
LARGEST = [
    *((f"{name}_usd", "2000", "2000.000001") for name in ("input", "output", "cache_read", "cache_write_1h")),
    ("web_search_usd", "0.1", "0.100000000001"),
]


def _begins(moment):
    return {"effective_from_0": f"{moment:%Y-%m-%d}", "effective_from_1": f"{moment:%H:%M:%S}"}


def _confirmed(page, body):
    """Send a price twice, as a person who has read what it will cost."""
    first = page.post(ADD, body)
    sent = first.context["adminform"].form.data
    return first, page.post(ADD, {**body, "confirmed": sent.get("confirmed", "")})


class TestAModelThatAnswered:
    def test_is_forgotten_by_an_operator(self, page_as, grace, acme):
        seen = {
            "provider": "claude",
            "model_id": "claude-sonnet-5-5",
            "answered_by": "claude-opus-5-5",
            "run_id": "run_1",
        }
        row = Identity.objects.create(org=acme, **seen)
        page, address = page_as(grace), f"/admin/catalog/identity/{row.pk}"

        shown, changed = page.get(f"{address}/change/"), page.post(f"{address}/change/", {"model_id": "other"})
        answer = page.post(f"{address}/delete/", {"post": "yes"})

        assert (shown.status_code, changed.status_code, answer.status_code) == (200, 403, 302)
        assert not Identity.objects.exists()
        event = AuditEvent.objects.get(action="identity.deleted", user_id=grace.pk)
        assert event.detail["name"] == "claude-sonnet-5-5 is claude-opus-5-5"


class TestPrices:
    def test_are_added_for_the_future(self, page_as, grace):
        entry = CatalogEntry.objects.get(model_id="claude-opus-5-5")
        body = {**PRICE, **_begins(timezone.now() + timedelta(hours=1)), "entry": entry.pk}

        first, answer = _confirmed(page_as(grace), body)

        assert answer.status_code == 302, answer.context["errors"]
        assert "Not saved yet." in first.content.decode()
        assert "1,000 out to claude-opus-5-5 will cost $0.075000001" in first.content.decode()
        assert "now." in first.content.decode()
        price = entry.prices.get(source="Our contract")
        assert (price.input_microdollars, price.output_microdollars) == (5_000_000, 25_000_001)
        assert (price.cache_read_microdollars, price.web_search_picodollars) == (500_000, None)
        assert AuditEvent.objects.filter(action="price.created", object_id="claude-opus-5-5", user_id=grace.pk).exists()

    def test_do_not_begin_in_the_past(self, page_as, grace):
        entry = CatalogEntry.objects.get(model_id="claude-opus-5-5")
        body = {**PRICE, **_begins(timezone.now() - timedelta(hours=1)), "entry": entry.pk}

        answer = page_as(grace).post("/admin/catalog/price/add/", body)

        assert "A price begins in the future." in answer.content.decode()
        assert not entry.prices.filter(source="Our contract").exists()

    def test_are_confirmed_as_they_were_shown(self, page_as, grace):
        entry = CatalogEntry.objects.get(model_id="claude-opus-5-5")
        body = {**PRICE, **_begins(timezone.now() + timedelta(hours=1)), "entry": entry.pk}
        page = page_as(grace)
        confirmed = page.post(ADD, body).context["adminform"].form.data["confirmed"]

        changed = page.post(ADD, {**body, "input_usd": "6", "confirmed": confirmed})

        assert "Not saved yet." in changed.content.decode()
        assert not entry.prices.filter(source="Our contract").exists()

    def test_are_offered_for_current_models_only(self, page_as, grace):
        form = page_as(grace).get(ADD).content.decode()

        assert ">claude-opus-5-5</option>" in form
        assert ">claude-opus-4-1-20250514</option>" not in form

    def test_are_shown_in_dollars(self, page_as, grace):
        price = Price.objects.filter(entry__model_id="claude-opus-5-5").first()

        assert page_as(grace).get(f"/admin/catalog/price/{price.pk}/change/").status_code == 200

    @pytest.mark.parametrize(("column", "most", "more"), LARGEST)
    def test_are_no_higher_than_a_line_of_the_ledger_can_hold(self, page_as, grace, column, most, more):
        entry = CatalogEntry.objects.get(model_id="claude-opus-5-5")
        body = {**PRICE, **_begins(timezone.now() + timedelta(hours=1)), "entry": entry.pk}
        page = page_as(grace)

        refused = page.post(ADD, {**body, column: more})
        assert "less than or equal to" in refused.content.decode()
        assert not entry.prices.filter(source="Our contract").exists()

        _confirmed(page, {**body, column: most})
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
            "capability_flags": ["nativeEffort", "vision"],
            "min_cache_tokens": "1024",
            "thinking_types": ["adaptive"],
            "thinks_by_default": "on",
            "effort_levels": ["low", "max"],
            "auth_modes": ["byok"],
        }

        answer = page.post("/admin/catalog/catalogentry/add/", body)
        assert answer.status_code == 302, answer.context["errors"]
        entry = CatalogEntry.objects.get(model_id="claude-opus-9")
        page.post(f"/admin/catalog/catalogentry/{entry.pk}/change/", {**body, "display_name": "Opus Nine"})

        entry.refresh_from_db()
        assert (entry.org, entry.display_name) == (None, "Opus Nine")
        assert (entry.effort_levels, entry.auth_modes) == (["low", "max"], ["byok"])
        assert entry.capabilities == {
            "nativeEffort": True,
            "vision": True,
            "minCacheTokens": 1024,
            "thinking": {"types": ["adaptive"], "onByDefault": True},
        }
        form = page.get(f"/admin/catalog/catalogentry/{entry.pk}/change/").context["adminform"].form
        assert form.initial["capability_flags"] == ["vision", "nativeEffort"]
        assert set(AuditEvent.objects.filter(object_id="claude-opus-9").values_list("action", flat=True)) == {
            "catalog_entry.created",
            "catalog_entry.updated",
        }

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"auth_modes": ["local"]}, "does not offer local"),
            ({"capability_flags": ["visions"]}, "visions is not one of the available choices"),
            ({"thinks_by_default": "on"}, "at least one kind of thinking"),
            ({"replaced_by": "claude-none"}, "not one of the available choices"),
            ({"effort_levels": ["low"]}, "Efforts need a model that takes them"),
        ],
    )
    def test_are_checked(self, page_as, grace, change, sentence):
        body = {"provider": "claude", "model_id": "m", "display_name": "M", "auth_modes": ["byok"], **change}

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
