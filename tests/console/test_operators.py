"""The operators' pages: the front page with what needs somebody, kill switches, runs, and the ways between them."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.html import escape

from billing.limits import metered_requests
from billing.models import BudgetUsage, Entitlement, SharedUsage
from catalog.models import CatalogEntry
from integrations.keys import platform
from integrations.models import Integration, PlatformKey
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.core.models import WorkerHeartbeat
from rensei.core.secret import Secret
from rensei.dispatch.models import LedgerAudit, Run
from rensei.operators import overview
from rensei.orgs import kill_switches
from rensei.orgs.access import Access
from rensei.orgs.models import KillSwitch, Org, User
from tests.pages import html_of

pytestmark = pytest.mark.django_db

STOP = "/admin/orgs/killswitch/stop"
LIST = "/admin/orgs/killswitch/"
WHY = "Elevated errors <at> Anthropic"
MOST_QUERIES = 30


def in_an_hour() -> datetime:
    return database_now() + timedelta(hours=1)


@pytest.fixture
def admin(grace: User, page_as: Callable[[User], Client]) -> Client:
    return page_as(grace)


@pytest.fixture
def pool_key(make_key: Callable[..., str]) -> PlatformKey:
    return platform.add_platform_key(
        actor=None, provider="claude", pool="metered", name="main", api_key=Secret(make_key())
    )


def page_html(client: Client, path: str = "/admin/") -> str:
    answer = client.get(path)
    assert answer.status_code == 200, path
    return html_of(answer)


class TestTheFrontPage:
    def test_says_of_an_empty_platform_that_nothing_needs_anybody(self, admin: Client) -> None:
        html = page_html(admin)

        assert "Nothing has run today yet." in html
        assert "No platform key yet" in html
        assert "The ledger has not been audited yet." in html
        assert "none has started yet" in html
        assert "No organization has used 80 %" in html
        assert "None within 60 days." in html
        assert "Requests for metered" not in html
        assert "Stopped by an operator" not in html

    def test_counts_todays_runs_and_cost_by_mode(self, admin: Client, make_run: Callable[..., Run]) -> None:
        make_run()
        failed, old = make_run(), make_run()
        Run.objects.filter(pk=failed.pk).update(state=Run.State.FAILED)
        Run.objects.filter(pk=old.pk).update(created_at=database_now() - timedelta(days=2))

        (line,) = overview.overview().modes

        assert (line.mode, line.runs, line.failed) == ("byok", 2, 1)

    def test_counts_the_queue_and_says_when_it_is_slow(self, admin: Client, make_run: Callable[..., Run]) -> None:
        run = make_run()
        before = overview.overview().queue
        Run.objects.filter(pk=run.pk).update(created_at=database_now() - timedelta(minutes=2))

        after = overview.overview().queue

        assert (before.waiting, before.is_slow) == (1, False)
        assert (after.waiting, after.is_slow) == (1, True)

    def test_counts_the_workers_that_are_alive(self, admin: Client) -> None:
        now = database_now()
        WorkerHeartbeat.objects.create(worker="alive", seen_at=now)
        WorkerHeartbeat.objects.create(worker="silent", seen_at=now - timedelta(minutes=5))

        assert overview.overview().workers_alive == 1

    @pytest.mark.parametrize(
        ("fields", "mark"),
        [
            ({}, "All well"),
            ({"health": "quarantined", "last_error": {"detail": "Refused.", "fix": ""}}, "Quarantined"),
            ({"health": "cooling", "cooling_until": in_an_hour}, "Cooling until"),
            ({"cooling_models": lambda: {"claude-a": in_an_hour().isoformat()}}, "Cooling for claude-a until"),
        ],
        ids=["well", "quarantined", "cooling", "cooling-for-a-model"],
    )
    def test_shows_how_the_pool_keys_are(
        self, admin: Client, pool_key: PlatformKey, fields: dict[str, Any], mark: str
    ) -> None:
        values = {name: value() if callable(value) else value for name, value in fields.items()}
        PlatformKey.objects.filter(pk=pool_key.pk).update(**values)

        html = page_html(admin)

        assert mark in html
        assert (f"/platformkey/{pool_key.pk}/change/" in html) is bool(fields)

    @pytest.mark.parametrize(
        ("age", "differences", "mark"), [(1, 0, "Agrees"), (1, 3, "3 differences"), (72, 0, "Long ago")]
    )
    def test_shows_the_last_audit_of_the_ledger(self, admin: Client, age: int, differences: int, mark: str) -> None:
        now = database_now()
        LedgerAudit.objects.create(ran_at=now - timedelta(hours=100), seconds=1, difference_count=99)
        LedgerAudit.objects.create(ran_at=now - timedelta(hours=age), seconds=1, difference_count=differences)

        html = page_html(admin)

        assert mark in html
        assert "99 differences" not in html

    def test_shows_that_the_vault_is_shut(
        self, admin: Client, integration: Integration, settings: Any, tmp_path: Any
    ) -> None:
        assert "Readable" in page_html(admin)
        settings.RENSEI_VAULT_KEYRING = tmp_path / "another.json"

        html = page_html(admin)

        assert "Shut" in html
        assert "1 credential cannot be opened" in html

    def test_names_the_organizations_near_their_limits(self, admin: Client, acme: Org, eve: User) -> None:
        now = database_now()
        evil = Org.objects.get(slug="evil")
        Entitlement.objects.filter(org=acme).update(shared_runs_per_day=10, monthly_budget_picodollars=10**12)
        Entitlement.objects.filter(org=evil).update(shared_runs_per_day=10, monthly_budget_picodollars=2**63 - 1)
        SharedUsage.objects.create(org=acme, day=now.date(), used=7, held=1)
        SharedUsage.objects.create(org=evil, day=now.date(), used=7)
        BudgetUsage.objects.create(org=acme, month=now.date().replace(day=1), used=7 * 10**11, held=10**11)
        BudgetUsage.objects.create(org=evil, month=now.date().replace(day=1), used=2**62, held=2**62 - 2**50)

        near = [(each.org.slug, each.what, each.percent) for each in overview.overview().near_limits]

        assert near == [
            ("acme", "shared runs today", 80),
            ("evil", "metered budget", 100),
            ("acme", "metered budget", 80),
        ]

    def test_names_the_models_that_are_about_to_retire(self, admin: Client) -> None:
        today = database_now().date()
        for model, days in (("soon", 30), ("later", 90), ("gone", -1)):
            CatalogEntry.objects.create(
                provider="claude", model_id=model, display_name=model, retires_on=today + timedelta(days=days)
            )

        assert [entry.model_id for entry in overview.overview().retiring] == ["soon"]

    def test_takes_as_many_queries_for_a_large_platform_as_for_a_small_one(
        self, admin: Client, ada_access: Access, make_user: Any, pool_key: PlatformKey, integration: Integration
    ) -> None:
        page_html(admin)
        with CaptureQueriesContext(connection) as few:
            page_html(admin)
        metered_requests.request_metered(ada_access, purpose="")
        today = database_now().date()
        for number in range(5):
            org = Org.objects.create(name=f"Org {number}", slug=f"org-{number}")
            Entitlement.objects.create(org=org)
            SharedUsage.objects.create(org=org, day=today, used=50)
            WorkerHeartbeat.objects.create(worker=f"w{number}", seen_at=database_now())
            KillSwitch.objects.create(
                kind="organization", target=org.pk, org=org, reason=WHY, set_by="x@y.test", set_at=database_now()
            )

        with CaptureQueriesContext(connection) as many:
            page_html(admin)

        assert len(many) == len(few)
        assert len(many) <= MOST_QUERIES

    def test_is_for_operators(self, ada: User, page_as: Callable[[User], Client]) -> None:
        assert page_as(ada).get("/admin/").status_code == 302


class TestARequestForMetered:
    def test_stands_there_with_who_and_what_for_until_metered_is_enabled(
        self, admin: Client, ada_access: Access
    ) -> None:
        metered_requests.request_metered(ada_access, purpose="Our <b>CI</b>")
        html = page_html(admin)
        selected = {"_selected_action": ada_access.org.pk, "action": "enable_metered"}

        asked = admin.post("/admin/billing/entitlement/", selected).content.decode()
        admin.post("/admin/billing/entitlement/", {**selected, "confirmed": "yes"})

        assert "Our &lt;b&gt;CI&lt;/b&gt;" in html
        assert "ada@acme.test" in html
        assert "ada@acme.test asked for it" in asked
        assert "Requests for metered" not in page_html(admin)
        assert Entitlement.objects.get(org=ada_access.org).metered_enabled

    def test_is_declined_after_a_question(self, admin: Client, ada_access: Access) -> None:
        metered_requests.request_metered(ada_access, purpose="")
        selected = {"_selected_action": ada_access.org.pk, "action": "decline_metered"}

        asked = admin.post("/admin/billing/entitlement/", selected)
        waiting = metered_requests.waiting().count()
        admin.post("/admin/billing/entitlement/", {**selected, "confirmed": "yes"})

        assert "asked by ada@acme.test" in asked.content.decode()
        assert waiting == 1
        assert not metered_requests.waiting().exists()
        assert not Entitlement.objects.get(org=ada_access.org).metered_enabled


@pytest.fixture
def targets(acme: Org, integration: Integration, pool_key: PlatformKey) -> dict[str, str]:
    return {
        "organization": acme.pk,
        "provider": "claude",
        "model": "claude-opus-5-5",
        "auth-mode": "byok",
        "platform-key": pool_key.pk,
        "integration": integration.pk,
    }


class TestKillSwitches:
    @pytest.mark.parametrize("kind", KillSwitch.Kind.values)
    def test_are_set_after_a_question_and_taken_after_another(
        self, admin: Client, grace: User, targets: dict[str, str], make_run: Any, kind: str
    ) -> None:
        make_run()
        address = f"{STOP}/{kind}/{targets[kind]}/"

        asked = page_html(admin, address)
        admin.post(address, {"reason": WHY})
        switch = KillSwitch.objects.get()
        listed = page_html(admin, LIST)
        resume = f"/admin/orgs/killswitch/{switch.pk}/resume/"
        asked_again = page_html(admin, resume)
        admin.post(resume)

        assert ("1 run" in asked) is (kind != "platform-key")
        assert (switch.kind, switch.target, switch.reason, switch.set_by) == (kind, targets[kind], WHY, grace.email)
        assert (switch.org_id is None) is (kind not in {"organization", "integration"})
        assert escape(WHY) in listed
        assert escape(WHY) in asked_again
        assert not KillSwitch.objects.exists()
        assert AuditEvent.objects.filter(user_id=grace.pk, object_id=targets[kind]).count() == 2

    def test_are_not_set_without_a_reason(self, admin: Client) -> None:
        answer = admin.post(f"{STOP}/provider/claude/", {"reason": " "})

        assert answer.status_code == 400
        assert "Say why" in answer.content.decode()
        assert not KillSwitch.objects.exists()

    @pytest.mark.parametrize("path", ["provider/absent", "model/absent", "organization/org_x", "nonsense/claude"])
    def test_are_not_set_for_what_there_is_not(self, admin: Client, path: str) -> None:
        assert admin.post(f"{STOP}/{path}/", {"reason": WHY}).status_code == 404

    def test_say_that_nothing_is_stopped(self, admin: Client) -> None:
        assert "Nothing is stopped." in page_html(admin, LIST)

    def test_are_chosen_from_what_there_is(self, admin: Client, catalog: None, pool_key: PlatformKey) -> None:
        kill_switches.stop(operator=User.objects.get(is_staff=True), kind="model", target="claude-opus-5-5", reason=WHY)

        html = page_html(admin, f"{LIST}add/")

        assert f"{STOP}/provider/claude/" in html
        assert f"{STOP}/auth-mode/host-session/" in html
        assert f"{STOP}/auth-mode/local/" not in html
        assert f"{STOP}/platform-key/{pool_key.pk}/" in html
        assert f"{STOP}/model/claude-opus-5-5/" not in html
        assert "Stopped" in html

    def test_are_for_operators_who_may(
        self, targets: dict[str, str], make_user: Any, page_as: Callable[[User], Client], ada: User
    ) -> None:
        clerk = make_user("clerk@platform.test", is_staff=True)
        address = f"{STOP}/provider/claude/"

        answers = {user.email: page_as(user).post(address, {"reason": WHY}).status_code for user in (clerk, ada)}

        assert answers == {clerk.email: 403, ada.email: 302}
        assert not KillSwitch.objects.exists()

    def test_are_reached_from_the_pages_of_what_they_stop(
        self, admin: Client, grace: User, targets: dict[str, str]
    ) -> None:
        entry = CatalogEntry.objects.get(model_id="claude-opus-5-5", org=None)
        pages = {
            "organization": f"/admin/orgs/org/{targets['organization']}/change/",
            "platform-key": f"/admin/integrations/platformkey/{targets['platform-key']}/change/",
            "integration": f"/admin/integrations/integration/{targets['integration']}/change/",
            "model": f"/admin/catalog/catalogentry/{entry.pk}/change/",
        }

        for kind, path in pages.items():
            assert f"{STOP}/{kind}/{targets[kind]}/" in page_html(admin, path), kind
            switch = kill_switches.stop(operator=grace, kind=kind, target=targets[kind], reason=WHY)
            html = page_html(admin, path)
            assert f"/admin/orgs/killswitch/{switch.pk}/resume/" in html
            assert f"{STOP}/{kind}/" not in html

    def test_of_a_suspended_organization_are_told_on_each_of_its_pages(
        self, acme: Org, ada: User, grace: User, page: Client
    ) -> None:
        kill_switches.stop(operator=grace, kind="organization", target=acme.pk, reason=WHY, org=acme)

        html = page.get("/o/acme/runs").content.decode()

        assert "Acme is suspended." in html
        assert escape(WHY) in html


class TestWays:
    def test_lead_from_each_object_to_what_belongs_to_it(
        self, admin: Client, acme: Org, run: Run, integration: Integration, pool_key: PlatformKey
    ) -> None:
        pages = {
            f"/admin/orgs/org/{acme.pk}/change/": ["dispatch/run", "billing/costevent", "entitlement", "auditevent"],
            f"/admin/dispatch/run/{run.pk}/change/": ["billing/costevent", "orgs/org", "integrations/integration"],
            f"/admin/integrations/integration/{integration.pk}/change/": ["orgs/org", "dispatch/run"],
            f"/admin/integrations/platformkey/{pool_key.pk}/change/": ["dispatch/run"],
            f"/admin/billing/entitlement/{acme.pk}/change/": ["orgs/org", "billing/costevent"],
        }

        for path, ways in pages.items():
            tools = page_html(admin, path).split('<ul class="object-tools">')[1].split("</ul>")[0]
            addresses = [part.split('"')[0].replace("&amp;", "&") for part in tools.split('href="')[1:]]
            assert all(any(way.strip("/") in address for address in addresses) for way in ways), path
            for address in addresses:
                assert admin.get(address).status_code == 200, address


class TestRuns:
    def test_are_read_without_what_was_asked_and_answered(self, admin: Client, make_run: Callable[..., Run]) -> None:
        run = make_run("a very secret question")
        error = {"code": "X_CODE", "detail": "Why."}
        Run.objects.filter(pk=run.pk).update(output_text="a very secret answer", state=Run.State.FAILED, error=error)

        html = page_html(admin, "/admin/dispatch/run/") + page_html(admin, f"/admin/dispatch/run/{run.pk}/change/")

        assert run.pk in html
        assert "X_CODE" in html
        assert "very secret" not in html

    @pytest.mark.parametrize("path", ["add/", "{}/delete/"])
    def test_are_only_read(self, admin: Client, run: Run, path: str) -> None:
        assert admin.get(f"/admin/dispatch/run/{path.format(run.pk)}").status_code == 403
