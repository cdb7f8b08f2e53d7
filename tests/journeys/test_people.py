"""People: an invitation from its mail to the first page, two-step sign-in with a real code, and sessions that end."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from rensei.audit.models import AuditEvent
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User
from tests.accounts.totp import code_now
from tests.journeys.person import PASSWORD, Person
from tests.journeys.stack import Stack
from tests.journeys.test_pages import barriers, misfits

pytestmark = [
    pytest.mark.browser,
    pytest.mark.outside,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


def mailed_link(stack: Stack, address: str) -> str:
    """Read the link in the newest mail to an address."""
    mails = [path.read_text() for path in sorted((stack.folder / "mail").iterdir())]
    newest = [text for text in mails if f"To: {address}" in text][-1]
    found = re.search(r"http\S+/invitations/\S+", newest)
    assert found is not None
    return found[0]


def open_account(person: Person) -> None:
    person.page.get_by_label("Account", exact=True).click()
    person.follow("Account")
    person.sees_heading("Where you are signed in")


def set_up_two_step(person: Person) -> str:
    """Set it up from the account page, and give back the key, read where those read it who cannot scan."""
    person.follow("Set up")
    person.type("Password", PASSWORD)
    person.click("Confirm")
    person.sees_heading("Set up two-step sign-in")
    person.unfold("Type the key instead")
    key = person.page.locator("details code").inner_text()
    person.type("Authenticator code", code_now(key))
    person.click("Turn on")
    person.sees_heading("Recovery codes")
    return key


class TestAnInvitation:
    def test_brings_a_new_person_in_on_a_phone(
        self, open_browser: Callable[..., Person], stack: Stack, ada_access: Access, ada: User
    ) -> None:
        owner, guest = open_browser(), open_browser(**PHONE)
        owner.sign_in(ada)
        owner.follow("Members")
        owner.type("Email address", "zoe@acme.test")
        owner.choose("Role", "auditor")
        owner.click("Send invitation")
        owner.sees("zoe@acme.test was sent a link by mail. It expires in 7 days.")
        owner.sees("Pending")
        assert misfits(owner) + barriers(owner) == []

        link = mailed_link(stack, "zoe@acme.test")
        guest.page.goto(link)
        guest.sees_heading("Join Acme")
        assert guest.page.url == f"{stack.url}/invitation"
        assert barriers(guest) == []
        guest.type("Your name", "Zoe")
        guest.type("Choose a password", PASSWORD)
        guest.click("Join")
        guest.sees("Welcome to Acme. You joined as an auditor.")
        assert guest.page.url.endswith("/o/acme/")

        owner.page.reload()
        expect(owner.page.get_by_role("row", name=re.compile("zoe@acme.test"))).to_contain_text("Zoe")
        stranger = open_browser()
        stranger.page.goto(link)
        stranger.sees("This invitation was used already.")
        assert link.rpartition("/")[2] not in stack.logs()

    def test_brings_somebody_with_an_account_in_without_scripts(
        self, open_browser: Callable[..., Person], stack: Stack, ada_access: Access, ada: User, eve: User
    ) -> None:
        owner, guest = open_browser(java_script_enabled=False), open_browser(java_script_enabled=False)
        owner.sign_in(ada)
        owner.follow("Members")
        owner.type("Email address", eve.email)
        owner.click("Send invitation")

        guest.page.goto(mailed_link(stack, eve.email))
        guest.follow("Sign in to join")
        guest.type("Email", eve.email)
        guest.type("Password", PASSWORD)
        guest.click("Sign in")
        guest.sees("You stay a member of Evil")
        guest.click("Join")
        guest.sees("Welcome to Acme. You joined as a member.")


class TestAnOwner:
    def test_gives_a_role_and_none_of_those_on_the_way_to_it(self, anybody: Person, ada: User, mia: User) -> None:
        """Arrow keys go through a list one by one. From member to owner they pass the admin."""
        asked: list[str] = []
        anybody.sign_in(ada)
        anybody.follow("Members")
        anybody.page.on("request", lambda request: asked.append(request.post_data or ""))

        anybody.choose("Role of Mia", "owner")

        anybody.sees(f"{mia.email} is owner now.")
        assert len([data for data in asked if "role=" in data]) == 1
        changed = AuditEvent.objects.filter(action="member.role_changed")
        assert [event.detail["new"] for event in changed] == [{"role": "owner"}]

    @pytest.mark.outside
    def test_confirms_a_role_by_enter(self, person: Person, ada: User, mia: User) -> None:
        person.sign_in(ada)
        person.follow("Members")
        roles = person.page.get_by_label("Role of Mia")
        roles.focus()
        person.page.keyboard.press("ArrowUp")
        chosen = roles.input_value()
        assert chosen != "member"

        person.page.keyboard.press("Enter")

        person.sees(f"{mia.email} is {chosen} now.")


class TestTwoStepSignIn:
    @pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
    def test_is_set_up_and_asked_for(
        self, open_browser: Callable[..., Person], ada_access: Access, ada: User, scripts: bool
    ) -> None:
        person = open_browser(java_script_enabled=scripts, **PHONE)
        person.sign_in(ada)
        open_account(person)
        key = set_up_two_step(person)
        recovery = person.page.locator(".recovery code").all_inner_texts()
        assert len(set(recovery)) == 10
        person.follow("I have kept them")
        person.sees("10 left")
        person.click("Sign out")

        person.sign_in(ada)
        person.sees_heading("Second step")
        person.type("Code", "000000")
        person.click("Sign in")
        person.sees("This code is not right.")
        person.type("Code", code_now(key))
        person.click("Sign in")
        person.sees_heading("Three steps to a first answer")
        open_account(person)
        person.click("Sign out")

        person.sign_in(ada)
        person.type("Code", recovery[0])
        person.click("Sign in")
        open_account(person)
        person.sees("9 left")

        person.follow("Turn off")
        person.type("Password", PASSWORD)
        person.click("Confirm")
        person.click("Turn off")
        person.sees("Two-step sign-in is off.")


class TestSessions:
    def test_end_everywhere_else_at_a_click(
        self, open_browser: Callable[..., Person], ada_access: Access, ada: User
    ) -> None:
        here, there, third = open_browser(java_script_enabled=False), open_browser(**PHONE), open_browser()
        for person in (there, third, here):
            person.sign_in(ada)
            person.sees_heading("Three steps to a first answer")
        open_account(here)
        expect(here.page.get_by_role("row", name=re.compile("Chrome on Linux"))).to_have_count(3)

        here.page.get_by_role("button", name=re.compile("^Sign out Chrome on Linux")).first.click()
        here.sees("Signed out there.")
        expect(here.page.get_by_role("row", name=re.compile("Chrome on Linux"))).to_have_count(2)
        here.click("Sign out everywhere else")
        here.sees("Signed out in one other place.")

        for person in (there, third):
            person.open("/o/acme/")
            person.sees_heading("Sign in")
        here.open("/o/acme/")
        here.sees_heading("Three steps to a first answer")


@pytest.mark.parametrize("theme", ["light", "dark"])
class TestTheAccountPages:
    def test_fit_every_screen_and_can_be_read_by_everyone(
        self, open_browser: Callable[..., Person], acme: Org, ada: User, catalog: None, theme: str
    ) -> None:
        person = open_browser(color_scheme=theme, reduced_motion="reduce")
        problems: list[str] = []

        def look() -> None:
            expect(person.page.get_by_role("heading", level=1)).to_be_visible()
            problems.extend(misfits(person) + barriers(person))

        person.open("/invitations/unknown")
        look()
        person.sign_in(ada)
        open_account(person)
        look()
        person.open("/accounts/password/change/")
        look()
        person.open("/account")
        person.follow("Set up")
        look()
        person.type("Password", PASSWORD)
        person.click("Confirm")
        look()
        key = person.page.locator("details code").text_content() or ""
        person.type("Authenticator code", code_now(key))
        person.click("Turn on")
        person.sees_heading("Recovery codes")
        look()
        for path in ("/account", "/accounts/2fa/totp/deactivate/", "/accounts/2fa/recovery-codes/generate/"):
            person.open(path)
            look()
        person.open("/account")
        person.click("Sign out")
        person.sign_in(ada)
        person.sees_heading("Second step")
        look()

        assert problems == []
