"""The operators' menu: by job, each model once; lists have nouns as titles, and money among the first columns."""

import re

import pytest
from django.contrib import admin
from django.urls import reverse

from rensei.core.auth_modes import AuthMode
from rensei.core.clock import database_now
from rensei.operators.site import JOBS
from tests.billing.conftest import make_charge  # noqa: F401 - a fixture
from tests.billing.record import record_charges


@pytest.fixture
def browser(page_as, grace):
    return page_as(grace)


@pytest.fixture
def charged(acme, make_charge):  # noqa: F811
    """A line in the ledger, so that the lists have their headings."""
    record_charges([make_charge(auth_mode=AuthMode.METERED, occurred_at=database_now())])


class TestTheMenu:
    def test_names_every_model_once_by_job(self, rf, grace):
        request = rf.get("/admin/")
        request.user = grace

        groups = admin.site.get_app_list(request)

        named = [model["object_name"] for group in groups for model in group["models"]]
        assert [group["name"] for group in groups] == list(JOBS)
        assert sorted(named) == sorted(model.__name__ for model in admin.site._registry)
        # None is left to the group of the others.
        assert {name for names in JOBS.values() for name in names} == set(named)


class TestAList:
    def test_has_a_noun_as_its_title(self, subtests, browser):
        for model in admin.site._registry:
            name = model._meta.model_name
            with subtests.test(name):
                html = browser.get(
                    reverse(f"admin:{model._meta.app_label}_{name}_changelist"), follow=True
                ).content.decode()

                assert not re.search(r"<h1>Select ", html)

    @pytest.mark.parametrize("path", ["billing/costevent", "billing/usagedaily"])
    def test_begins_with_the_money(self, browser, charged, path):
        html = browser.get(f"/admin/{path}/").content.decode()

        heads = [html.index(f">{title}</") for title in ("Amount, USD", "Billed, USD", "Org", "Auth mode")]
        assert heads == sorted(heads)

    def test_of_prices_is_in_dollars(self, browser, catalog):
        html = browser.get("/admin/catalog/price/?q=claude-opus-5-5").content.decode()

        assert "Input, $ per M" in html
        assert '<td class="field-input_usd">4</td>' in html
