"""The pages of the catalog: what an entry is called and answered by, and deleting one's own."""

import re

import pytest

from catalog import pricing
from catalog.models import CatalogEntry, Identity
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.core.effort import Effort

OWN = "/o/acme/settings/catalog/claude/nova"

pytestmark = pytest.mark.usefixtures("catalog")


@pytest.fixture
def own(acme):
    return CatalogEntry.objects.create(
        org=acme, provider="claude", model_id="nova", display_name="Nova", auth_modes=["byok"]
    )


class TestAnEntry:
    def test_shows_its_other_names(self, page):
        text = page.get("/o/acme/settings/catalog/claude/claude-haiku-4-5-20251001").content.decode()

        assert "<code>claude-haiku-4-5</code>" in text

    def test_is_shown_under_any_of_them(self, page):
        assert page.get("/o/acme/settings/catalog/claude/anthropic/claude-haiku-4-5").status_code == 200

    def test_shows_what_has_answered_in_its_name(self, page, own, acme):
        assert "Answered by" not in page.get(OWN).content.decode()
        Identity.objects.create(
            org=acme, provider="claude", model_id="nova", answered_by="claude-opus-5-5", run_id="run_x"
        )

        text = page.get(OWN).content.decode()

        assert "Answered by" in text
        assert "/settings/catalog/claude/claude-opus-5-5" in text


class TestTheList:
    def shown(self, page, query: str = "") -> list[str]:
        text = page.get(f"/o/acme/settings/catalog{query}").content.decode()
        return re.findall(r'<code class="table__sub">([^<]+)</code>', text)

    def in_stage(self, lifecycle: str) -> set[str]:
        today = database_now().date()
        entries = CatalogEntry.objects.all()
        return {one.model_id for one in entries if lifecycle in ("all", one.lifecycle_on(today).value)}

    def test_opens_on_active_models_with_the_others_a_click_away(self, page, own):
        text = page.get("/o/acme/settings/catalog").content.decode()

        assert set(self.shown(page)) == self.in_stage("active")
        for lifecycle in ("active", "deprecated", "retired", "all"):
            assert f'href="?lifecycle={lifecycle}"' in text
            assert set(self.shown(page, f"?lifecycle={lifecycle}")) == self.in_stage(lifecycle)

    @pytest.mark.parametrize("sort", ["model", "efforts", "input", "output"])
    def test_is_put_in_order(self, page, own, sort):
        now = database_now()
        entries = {one.model_id: one for one in CatalogEntry.objects.all()}
        prices = pricing.price_lists(list(entries.values()), moment=now)

        def value(model_id: str) -> object:
            entry = entries[model_id]
            if sort == "model":
                return entry.display_name.casefold()
            if sort == "efforts":
                return max((Effort.values.index(level) for level in entry.effort_levels), default=None)
            return getattr(prices[entry.pk].bands[0], sort) if entry.pk in prices else None

        up = [value(one) for one in self.shown(page, f"?lifecycle=all&sort={sort}")]
        down = [value(one) for one in self.shown(page, f"?lifecycle=all&sort=-{sort}")]

        known = sorted(one for one in up if one is not None)
        nothing = [None] * (len(entries) - len(known))
        assert up == known + nothing
        assert down == known[::-1] + nothing
        assert len(set(known)) >= 2

    def test_keeps_order_and_stage_in_its_links(self, page):
        text = page.get("/o/acme/settings/catalog?lifecycle=retired&sort=input").content.decode()

        assert 'aria-sort="ascending"' in text
        assert 'href="?lifecycle=retired&amp;sort=-input"' in text
        assert 'href="?lifecycle=all&amp;sort=input"' in text

    @pytest.mark.parametrize("query", ["?sort=", "?sort=nothing", "?sort=--input", "?lifecycle=nothing&sort=%00"])
    def test_takes_no_other_order(self, page, query):
        assert page.get(f"/o/acme/settings/catalog{query}").status_code == 200


class TestDeleting:
    def test_asks_first_and_then_deletes(self, page, own):
        asked = page.get(f"{OWN}/delete").content.decode()
        assert "Delete Nova?" in asked
        assert CatalogEntry.objects.filter(pk=own.pk).exists()

        answer = page.post(f"{OWN}/delete", follow=True)

        assert "nova was deleted." in answer.content.decode()
        assert not CatalogEntry.objects.filter(pk=own.pk).exists()
        assert AuditEvent.objects.get(action="catalog_entry.deleted").object_id == "nova"

    def test_names_the_profiles_that_use_it(self, page, own, profile):
        profile.model_id = "anthropic/nova"
        profile.save()

        asked = page.get(f"{OWN}/delete").content.decode()
        refused = page.post(f"{OWN}/delete", follow=True).content.decode()

        assert "is in use" in asked
        assert profile.public_id in asked
        assert "used by prof_deep" in refused
        assert CatalogEntry.objects.filter(pk=own.pk).exists()

    def test_is_offered_for_own_entries_and_to_managers_only(self, page, own, page_as, mia):
        assert f"{OWN}/delete" in page.get(OWN).content.decode()
        assert f"{OWN}/delete" not in page_as(mia).get(OWN).content.decode()
        assert "/delete" not in page.get("/o/acme/settings/catalog/claude/claude-opus-5-5").content.decode()

    def test_does_not_touch_the_platform_s(self, page):
        address = "/o/acme/settings/catalog/claude/claude-opus-5-5/delete"

        assert (page.get(address).status_code, page.post(address).status_code) == (404, 404)
        assert CatalogEntry.objects.filter(model_id="claude-opus-5-5").exists()
