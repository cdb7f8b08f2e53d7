"""Operators at work: an organization is suspended and resumed, and one that asks for metered gets it."""

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from billing.limits import metered_requests
from integrations.models import Integration, PlatformKey
from profiles.models import ModelProfile
from rensei.dispatch.models import Run
from rensei.orgs import kill_switches
from rensei.orgs.access import Access
from rensei.orgs.models import KillSwitch, Org, User
from tests.journeys.person import Person

pytestmark = [
    pytest.mark.outside,
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]

WHY = "The March invoice is unpaid."


def dispatch(member: Person, message: str) -> None:
    member.open("/o/acme/playground")
    member.type("Message", message)
    member.click("Dispatch")


class TestAnOperator:
    def test_suspends_an_organization_whose_members_read_why_and_resumes_it(
        self,
        open_browser: Callable[..., Person],
        grace: User,
        mia: User,
        acme: Org,
        connected: Integration,
        make_profile: Callable[..., ModelProfile],
    ) -> None:
        make_profile(name="deep", auth_modes=["byok"], is_default=True)
        operator, member = open_browser(), open_browser()
        operator.sign_in(grace)
        member.sign_in(mia)

        operator.open(f"/admin/orgs/org/{acme.pk}/change/")
        operator.follow("Suspend…")
        operator.sees("It counts from the next dispatch on, and is written to the audit log with your name.")
        operator.type("Reason", WHY)
        operator.click("Suspend")
        operator.sees(WHY)

        dispatch(member, "Does this still run?")
        member.sees("Acme is suspended.")
        member.sees(WHY)
        member.sees("The operator has suspended this organization")
        assert not Run.objects.exists()

        operator.open("/admin/")
        stopped = operator.section("Stopped by an operator")
        expect(stopped).to_contain_text(WHY)
        stopped.get_by_role("link", name="Resume").click()
        operator.click("Resume")
        operator.sees("Nothing is stopped.")

        dispatch(member, "And now?")
        member.reads_the_answer()
        expect(member.page.get_by_text("Acme is suspended.")).to_have_count(0)

    def test_enables_metered_for_an_organization_that_asked_for_it(
        self,
        open_either: Callable[..., Person],
        grace: User,
        ada: User,
        make_profile: Callable[..., ModelProfile],
        fill_pool: Callable[[str], PlatformKey],
    ) -> None:
        make_profile(name="paid", auth_modes=["metered"], is_default=True)
        fill_pool("metered")
        operator, owner = open_either(), open_either()
        operator.sign_in(grace)
        owner.sign_in(ada)

        owner.open("/o/acme/settings/profiles/prof_paid")
        owner.follow("Request metered")
        dialog = owner.page.get_by_role("dialog")
        owner.type("What do you need it for?", "Our nightly builds.")
        owner.click("Request metered", within=dialog)
        owner.sees("Requested, not answered yet")

        operator.open("/admin/")
        requests = operator.section("Requests for metered")
        expect(requests).to_contain_text("ada@acme.test")
        expect(requests).to_contain_text("Our nightly builds.")
        operator.click("Enable… metered for Acme", within=requests)
        operator.sees("ada@acme.test asked for it")
        operator.click("Enable metered")
        operator.sees("Metered enabled for 1 organization(s).")
        operator.open("/admin/")
        operator.sees_heading("Overview")
        expect(operator.section("Requests for metered")).to_have_count(0)

        owner.open("/o/acme/settings/metered")
        owner.sees("Metered is enabled")
        dispatch(owner, "Who pays for this?")
        owner.reads_the_answer()
        owner.sees("Your organization, through Rensei's cost ledger")

    def test_works_without_scripts(
        self,
        open_browser: Callable[..., Person],
        grace: User,
        ada: User,
        acme: Org,
        make_profile: Callable[..., ModelProfile],
    ) -> None:
        make_profile(name="paid", auth_modes=["metered"], is_default=True)
        operator, owner = open_browser(java_script_enabled=False), open_browser(java_script_enabled=False)
        operator.sign_in(grace)
        owner.sign_in(ada)

        owner.open("/o/acme/settings/profiles/prof_paid")
        owner.follow("Request metered")
        owner.click("Request metered")
        owner.sees("Requested, not answered yet")
        operator.open("/admin/")
        operator.click("Decline… the request of Acme")
        operator.click("Decline")
        operator.sees("1 request(s) declined.")
        operator.open("/admin/orgs/killswitch/")
        operator.follow("Stop something")
        operator.follow("Pause… Anthropic Claude")
        operator.type("Reason", WHY)
        operator.click("Pause")
        operator.sees("Stopped now")
        operator.page.get_by_role("link", name="Resume").click()
        operator.click("Resume")

        operator.sees("Nothing is stopped.")


class TestAnAuditor:
    def test_reads_the_audit_log_and_finds_nothing_to_change(
        self,
        anybody: Person,
        otto: User,
        connected: Integration,
        make_profile: Callable[..., ModelProfile],
    ) -> None:
        person = anybody
        profile = make_profile(name="deep", auth_modes=["byok"])
        person.sign_in(otto)

        person.follow("Audit log")
        person.sees_heading("Audit log")
        row = person.page.get_by_role("row").filter(has_text=connected.id)
        expect(row).to_contain_text("Integration added")
        person.unfold(f"Details of Integration added, {connected.id}")
        expect(row).to_contain_text("Main")
        person.choose("What", "profile.created")
        expect(person.page.get_by_role("row").filter(has_text=connected.id)).to_have_count(0)
        person.follow(profile.public_id)
        person.sees_heading("deep")
        person.page.go_back()
        with person.page.expect_download() as download:
            person.follow("Download CSV")
        lines = download.value.path().read_text().splitlines()

        assert len(lines) == 2
        assert profile.public_id in lines[1]
        buttons = person.page.get_by_role("main").get_by_role("button", disabled=False).all_inner_texts()
        assert set(buttons) <= {"Filter"}


@pytest.mark.parametrize("theme", ["light", "dark"])
class TestTheOperatorsPages:
    def test_fit_every_screen_and_can_be_read_by_everyone(
        self, open_browser: Callable[..., Person], grace: User, connected: Integration, ada_access: Access, theme: str
    ) -> None:
        acme = ada_access.org
        metered_requests.request_metered(ada_access, purpose="Our nightly builds.")
        switch = kill_switches.stop(
            operator=grace, kind=KillSwitch.Kind.INTEGRATION, target=connected.id, reason=WHY, org=acme
        )
        person = open_browser(color_scheme=theme)
        person.sign_in(grace)
        switches = "/admin/orgs/killswitch/"
        paths = ["/admin/", switches, f"{switches}add/", f"{switches}stop/provider/claude/"]
        problems: list[str] = []
        for path in [*paths, f"{switches}{switch.pk}/resume/"]:
            person.open(path)
            expect(person.page.get_by_role("heading", level=1).first).to_be_visible()
            for width in (390, 820, 1440):
                person.page.set_viewport_size({"width": width, "height": 900})
                if person.page.evaluate("document.documentElement.scrollWidth") > width:
                    problems.append(f"{path} does not fit {width} px")
            rules = Axe().run(person.page).response["violations"]
            problems += [f"{path}: {rule['id']}" for rule in rules if rule["impact"] in ("serious", "critical")]

        assert problems == []
