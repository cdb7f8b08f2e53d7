"""A person goes from page to page by the keyboard alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import User
from tests.journeys.person import Person
from tests.journeys.test_pages import COLOURS_ONLY, barriers

pytestmark = [
    pytest.mark.browser,
    pytest.mark.outside,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]
SCRIPT_BYTES_MAX = 6_000


@pytest.fixture
def asked(ada_access: Access, connected: Integration, make_profile: Callable[..., ModelProfile]) -> Run:
    """A run that waits, so that its page may be looked at for as long as one likes."""
    make_profile(name="deep", auth_modes=["byok"])
    messages = messages_from(text="Why is the sky blue?", messages=None)
    return admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=messages))


class TestAPerson:
    def test_goes_everywhere_by_keys(self, person: Person, ada: User, asked: Run) -> None:
        person.sign_in(ada)
        # The page is loaded whole, with the script of the keys.
        person.open("/o/acme/")
        page, keys = person.page, person.page.keyboard
        field = page.get_by_role("combobox", name="Go to a page, profile, run or document")

        keys.press("Control+k")
        expect(field).to_be_focused()
        assert barriers(person) == []
        keys.type("usa")
        expect(page.get_by_role("option", selected=True)).to_contain_text("Usage")
        keys.press("Enter")
        person.sees_heading("Usage")

        for typed, heading in ((asked.id, "deep"), ("prof_deep", "deep"), ("glossary", "Glossary")):
            page.goto(f"{person.base_url}/o/acme/usage")
            keys.press("Control+k")
            expect(field).to_be_focused()
            keys.type(typed)
            if typed == asked.id:
                expect(page.get_by_role("option")).to_have_count(1)
            keys.press("Enter")
            expect(page).not_to_have_url(f"{person.base_url}/o/acme/usage")
            person.sees_heading(heading)

        person.open("/o/acme/usage")
        for keystroke, heading in (("r", "Runs"), ("m", "Model Profiles")):
            keys.press("g")
            keys.press(keystroke)
            person.sees_heading(heading)

        keys.press("g")
        keys.press("r")
        person.sees_heading("Runs")
        keys.press("/")
        keys.type("sky")
        keys.press("Enter")
        expect(page.get_by_text("1 run ·")).to_be_visible()
        expect(page.get_by_text("Why is the sky blue?")).to_be_visible()

        page.get_by_role("heading", level=1).click()
        keys.press("c")
        person.sees_heading("Playground")
        page.get_by_label("Message", exact=True).focus()
        keys.type("Can you see / and ? and g r?")
        person.sees("Runs as byok")
        keys.press("Control+Enter")
        person.opens_the_run()
        assert Run.objects.count() == 2

    def test_closes_the_palette_and_turns_letters_off(self, person: Person, ada: User, asked: Run) -> None:
        person.sign_in(ada)
        person.open("/o/acme/runs")
        page, keys = person.page, person.page.keyboard
        palette = page.get_by_role("dialog", name="Go to")
        opener = page.get_by_role("button", name="Go to a page, profile, run or document")
        opener.focus()

        keys.press("?")
        expect(palette).to_be_visible()
        page.get_by_role("checkbox", name="Single-letter keys").press("Space")
        keys.press("Escape")
        expect(palette).not_to_be_visible()
        expect(opener).to_be_focused()
        keys.press("?")
        keys.press("c")
        keys.press("Control+k")
        expect(palette).to_be_visible()
        person.sees_heading("Runs")

    def test_reads_the_palette_in_the_dark_and_on_a_phone(
        self, open_browser: Callable[..., Person], ada: User, asked: Run
    ) -> None:
        person = open_browser(viewport={"width": 390, "height": 844}, color_scheme="dark")
        person.sign_in(ada)
        # The page is loaded whole, with the script of the button.
        person.open("/o/acme/runs")
        person.click("Go to a page, profile, run or document")
        expect(person.page.get_by_role("combobox")).to_be_focused()

        assert barriers(person, COLOURS_ONLY) == []
        assert not person.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


class TestTheScript:
    def test_is_small(self) -> None:
        script = Path(__file__).parents[2] / "rensei/console/static/rensei/palette.js"

        assert len(script.read_bytes()) < SCRIPT_BYTES_MAX
