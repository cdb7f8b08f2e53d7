import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client

from billing.models import BillingSetting, CostEvent, Entitlement, SharedUsage, UsageDaily
from rensei.audit.models import AuditEvent
from rensei.core.usage import Usage
from rensei.orgs.models import Org, User
from tests.billing.conftest import NOON
from tests.billing.record import capacity_line

ENTITLEMENTS = "/admin/billing/entitlement/"


@pytest.fixture
def admin(page_as: Callable[[User], Client], grace: User) -> Client:
    return page_as(grace)


def act(admin: Client, action: str, *org_ids: str, **more: str) -> str:
    answer = admin.post(ENTITLEMENTS, {"action": action, "_selected_action": org_ids, **more}, follow=True)
    assert answer.status_code == 200
    return answer.content.decode()


class TestEntitlements:
    def test_has_a_row_for_each_organization(self, admin: Client, acme: Org, eve: User) -> None:
        page = admin.get(ENTITLEMENTS).content.decode()

        assert page.index(">acme</a>") < page.index(">evil</a>")
        assert "Enable metered" in page
        assert "Disable metered" in page

    def test_asks_before_it_enables(self, admin: Client, acme: Org) -> None:
        page = act(admin, "enable_metered", acme.pk)

        assert not Entitlement.objects.get().metered_enabled
        assert "is billed to the organization in its cost ledger" in page
        assert "Acme (acme)" in page

    def test_enables_when_confirmed(self, admin: Client, acme: Org, eve: User) -> None:
        page = act(admin, "enable_metered", acme.pk, confirmed="yes")

        assert "Metered enabled for 1 organization(s)." in page
        assert list(Entitlement.objects.filter(metered_enabled=True)) == [Entitlement.objects.get(org=acme)]
        assert AuditEvent.objects.get(action="entitlement.changed").actor == "grace@platform.test"

    @pytest.mark.parametrize(("typed", "stored"), [("12.50", 12_500_000_000_000), ("", None), ("0", 0)])
    def test_sets_a_budget_with_it(self, admin: Client, acme: Org, typed: str, stored: int | None) -> None:
        asked = act(admin, "enable_metered", acme.pk)
        act(admin, "enable_metered", acme.pk, confirmed="yes", monthly_budget_usd=typed)

        assert "Monthly budget, USD" in asked
        assert Entitlement.objects.get().monthly_budget_picodollars == stored

    def test_asks_again_after_a_budget_that_is_none(self, admin: Client, acme: Org) -> None:
        page = act(admin, "enable_metered", acme.pk, confirmed="yes", monthly_budget_usd="much")

        assert "Enter a number." in page
        assert not Entitlement.objects.get().metered_enabled

    def test_disables_when_confirmed(self, admin: Client, acme: Org) -> None:
        Entitlement.objects.update(metered_enabled=True)

        asked = act(admin, "disable_metered", acme.pk)
        act(admin, "disable_metered", acme.pk, confirmed="yes")

        assert "METERED_NOT_ENTITLED" in asked
        assert not Entitlement.objects.get().metered_enabled

    def test_flips_the_checkbox_on_the_rows_page(self, admin: Client, acme: Org) -> None:
        before = Entitlement.objects.get().updated_at

        admin.post(f"{ENTITLEMENTS}{acme.pk}/change/", {"metered_enabled": "on", "shared_runs_per_day": "50"})

        entitlement = Entitlement.objects.get()
        assert (entitlement.metered_enabled, entitlement.shared_runs_per_day) == (True, 50)
        assert entitlement.updated_at > before
        event = AuditEvent.objects.get(action="entitlement.changed")
        assert event.detail == {"metered_enabled": True, "shared_runs_per_day": 50}

    def test_writes_no_audit_event_where_nothing_changed(self, admin: Client, acme: Org) -> None:
        admin.post(f"{ENTITLEMENTS}{acme.pk}/change/", {"shared_runs_per_day": ""})

        assert not AuditEvent.objects.filter(action="entitlement.changed").exists()

    @pytest.mark.parametrize("path", ["add/", "{org}/delete/"])
    def test_neither_adds_nor_deletes(self, admin: Client, acme: Org, path: str) -> None:
        assert admin.get(ENTITLEMENTS + path.format(org=acme.pk)).status_code == 403

    def test_is_for_operators(self, page_as: Callable[[User], Client], acme: Org, ada: User) -> None:
        answer = page_as(ada).post(
            ENTITLEMENTS, {"action": "enable_metered", "_selected_action": acme.pk, "confirmed": "yes"}
        )

        assert answer.status_code in {302, 403}
        assert not Entitlement.objects.get().metered_enabled


class TestLedger:
    @pytest.mark.parametrize("name", ["costevent", "usagedaily", "sharedusage"])
    def test_is_only_read(self, admin: Client, acme: Org, charge: Callable[..., CostEvent], name: str) -> None:
        line = charge()
        SharedUsage.objects.create(org=acme, day=NOON.date())
        row = {"costevent": line, "usagedaily": UsageDaily.objects.get(), "sharedusage": SharedUsage.objects.get()}

        page = admin.get(f"/admin/billing/{name}/{row[name].pk}/change/")

        assert page.status_code == 200
        assert 'name="_save"' not in page.content.decode()
        assert admin.get(f"/admin/billing/{name}/add/").status_code == 403
        assert admin.get(f"/admin/billing/{name}/{row[name].pk}/delete/").status_code == 403

    @pytest.mark.parametrize("name", ["costevent", "usagedaily"])
    def test_totals_what_the_filters_leave(self, admin: Client, charge: Callable[..., CostEvent], name: str) -> None:
        charge()
        charge(usage=Usage(input_tokens=1))
        charge(auth_mode="byok")
        charge(auth_mode="byok", prices=None)

        everything = admin.get(f"/admin/billing/{name}/").content.decode()
        metered = admin.get(f"/admin/billing/{name}/?auth_mode__exact=metered").content.decode()

        assert totals(everything) == ["0.015005", "0.007505"]
        assert totals(metered) == ["0.007505", "0.007505"]

    def test_totals_beyond_the_databases_whole_numbers(self, admin: Client, charge: Callable[..., CostEvent]) -> None:
        for day in range(3):
            charge(usage=Usage(output_tokens=300_000_000_001), occurred_at=NOON + timedelta(days=day))

        page = admin.get("/admin/billing/costevent/").content.decode()

        assert totals(page) == ["22500000.000075", "22500000.000075"]

    def test_totals_a_period_and_asks_for_one_where_it_would_read_everything(
        self, admin: Client, charge: Callable[..., CostEvent]
    ) -> None:
        charge()
        charge(occurred_at=NOON + timedelta(days=40))

        march = admin.get("/admin/billing/costevent/?month=2026-03-01").content.decode()
        charges = admin.get("/admin/billing/costevent/?kind__exact=charge").content.decode()

        assert totals(march) == ["0.007500", "0.007500"]
        assert "Choose a period" in charges

    def test_counts_no_further_than_anybody_turns_pages(
        self, admin: Client, charge: Callable[..., CostEvent], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("billing.ledger.admin.CappedPaginator.MOST", 2)
        monkeypatch.setattr("billing.ledger.admin.CostEventAdmin.list_per_page", 1)
        lines = [charge() for _ in range(3)]

        page = admin.get("/admin/billing/costevent/?p=2").content.decode()

        assert [line.pk in page for line in lines] == [False, True, False]
        assert "2 cost events" in page
        assert totals(page) == ["0.022500", "0.022500"]

    def test_has_the_lines_of_a_capacity_provider_by_its_filter(
        self, admin: Client, acme: Org, charge: Callable[..., CostEvent]
    ) -> None:
        call, line = charge(usage=Usage(input_tokens=1)), capacity_line(acme)

        page = admin.get("/admin/billing/costevent/?provider__exact=e2b").content.decode()

        assert '?provider__exact=vercel">Vercel<' in page
        assert (line.run_id in page, call.run_id in page) == (True, False)

    def test_finds_the_lines_of_a_run(self, admin: Client, charge: Callable[..., CostEvent]) -> None:
        line, other = charge(), charge()

        page = admin.get(f"/admin/billing/costevent/?q={line.run_id}").content.decode()

        assert line.pk in page
        assert other.pk not in page


class TestBillingSetting:
    def test_leads_to_the_one_row(self, admin: Client) -> None:
        page = admin.get("/admin/billing/billingsetting/", follow=True)

        assert page.redirect_chain == [("/admin/billing/billingsetting/1/change/", 302)]
        assert BillingSetting.objects.get().shared_runs_per_day == 20

    def test_changes_the_platforms_limit(self, admin: Client) -> None:
        BillingSetting.objects.create()

        amounts = {"shared_org_usd_per_day": "2.50", "shared_platform_usd_per_day": "500"}
        admin.post("/admin/billing/billingsetting/1/change/", {"shared_runs_per_day": "5", **amounts})

        setting = BillingSetting.objects.get()
        assert (setting.shared_runs_per_day, setting.shared_org_picodollars_per_day) == (5, 2_500_000_000_000)
        assert AuditEvent.objects.get(action="billing-setting.changed").detail == {
            "shared_runs_per_day": 5,
            "shared_org_picodollars_per_day": 2_500_000_000_000,
        }


def totals(page: str) -> list[str]:
    line = page[page.index('class="ledger-totals"') :]
    return re.findall(r"<strong>([\d.]+)</strong>", line[: line.index("</p>")])


class TestButtonsOfARow:
    """Each row has its actions as buttons, which lead to the same pages."""

    ADDRESS = "/admin/billing/entitlement"

    def test_enable_metered_with_a_budget(self, page_as, grace, acme):
        admin = page_as(grace)
        shown = admin.get(f"{self.ADDRESS}/").content.decode()
        address = f"{self.ADDRESS}/{acme.pk}/do/enable_metered/"

        asked = admin.get(address).content.decode()
        before = Entitlement.objects.get(org=acme).metered_enabled
        answer = admin.post(address, {"confirmed": "yes", "monthly_budget_usd": "25"})

        assert f'href="{address}"' in shown
        assert "Acme (acme)" in asked
        entitlement = Entitlement.objects.get(org=acme)
        assert (before, entitlement.metered_enabled) == (False, True)
        assert entitlement.monthly_budget_picodollars == 25 * 10**12
        assert answer.headers["Location"] == f"{self.ADDRESS}/"

    @pytest.mark.parametrize(
        ("action", "title"),
        [
            ("decline_metered", "Decline requests for metered"),
            ("close_statements", "Close statements of past months"),
            ("disable_metered", "Disable metered"),
        ],
    )
    def test_ask_first(self, page_as, grace, acme, action, title):
        answer = page_as(grace).get(f"{self.ADDRESS}/{acme.pk}/do/{action}/")

        assert answer.status_code == 200
        assert f"<h1>{title}</h1>" in answer.content.decode()

    @pytest.mark.parametrize("path", ["{}/do/delete_selected/", "{}/do/save_model/", "none/do/enable_metered/"])
    def test_lead_to_nothing_else(self, page_as, grace, acme, path):
        assert page_as(grace).get(f"{self.ADDRESS}/{path.format(acme.pk)}").status_code == 404

    def test_are_for_operators_who_may_change_it(self, page_as, acme, make_user):
        reader = make_user("reader@platform.test", is_staff=True)

        answer = page_as(reader).post(f"{self.ADDRESS}/{acme.pk}/do/enable_metered/", {"confirmed": "yes"})

        assert answer.status_code in {403, 404}
        assert not Entitlement.objects.get(org=acme).metered_enabled
