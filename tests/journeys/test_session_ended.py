"""A session ends while a page is open: nothing on the page is replaced, and what was typed comes back."""

from collections.abc import Callable

import pytest
from django.contrib.sessions.models import Session
from playwright.sync_api import expect

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import User
from rensei.tokens.machines import register_host
from tests.journeys.person import PASSWORD, Person

pytestmark = [
    pytest.mark.browser,
    pytest.mark.outside,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]
TYPED = "What did I want to ask?"


@pytest.fixture
def profile(connected: Integration, make_profile: Callable[..., ModelProfile]) -> ModelProfile:
    return make_profile(name="deep", auth_modes=["byok"])


@pytest.fixture
def waiting_run(ada_access: Access, make_profile: Callable[..., ModelProfile]) -> Run:
    """A run that waits for its machine, so its page asks every second how it is."""
    register_host(ada_access, name="laptop")
    profile = make_profile(name="mine", auth_modes=["host-session"])
    messages = messages_from(text="Hello?", messages=None)
    return admit.dispatch(ada_access, DispatchRequest(profile_id=profile.public_id, messages=messages))


def end_sessions() -> None:
    Session.objects.all().delete()


def sign_in_again(person: Person, user: User) -> None:
    expect(person.page.get_by_label("Password", exact=True)).to_be_visible()
    person.type("Email", user.email)
    person.page.get_by_label("Password", exact=True).fill(PASSWORD)
    person.click("Sign in")


class TestAPersonWhoseSessionHasEnded:
    def test_is_led_from_a_live_run_to_the_sign_in_page_and_back(
        self, person: Person, ada: User, waiting_run: Run
    ) -> None:
        person.sign_in(ada)
        person.open(f"/o/acme/runs/{waiting_run.id}")
        expect(person.page.locator("#run")).to_be_visible()

        end_sessions()
        sign_in_again(person, ada)

        expect(person.page.locator("#run")).to_be_visible()
        assert person.page.url.endswith(f"/o/acme/runs/{waiting_run.id}")

    def test_finds_what_was_typed_in_the_playground(self, person: Person, ada: User, profile: ModelProfile) -> None:
        person.sign_in(ada)
        person.follow("Playground")
        person.type("Message", "Something")

        end_sessions()
        person.page.get_by_label("Message", exact=True).press_sequentially("!")
        sign_in_again(person, ada)

        expect(person.page.get_by_label("Message", exact=True)).to_have_value("Something!")
        person.sees("What you had typed is back.")
        assert not Run.objects.exists()

    def test_finds_what_was_sent_in_a_form(self, person: Person, ada: User, profile: ModelProfile) -> None:
        person.sign_in(ada)
        person.open("/o/acme/settings/profiles/new")
        person.type("Name", "second")

        end_sessions()
        person.click("Create profile")
        sign_in_again(person, ada)

        expect(person.page.get_by_label("Name", exact=True)).to_have_value("second")
        assert not ModelProfile.objects.filter(name="second").exists()

    def test_never_finds_a_key(self, person: Person, ada: User, profile: ModelProfile, make_key: Callable) -> None:
        person.sign_in(ada)
        person.open("/o/acme/settings/integrations/add/claude")
        key = make_key()
        person.type("API key", key)
        person.type("Name", "Second")

        end_sessions()
        person.click("Save")
        assert key not in person.page.evaluate("JSON.stringify(sessionStorage)")
        sign_in_again(person, ada)

        expect(person.page.get_by_label("Name", exact=True)).to_have_value("Second")
        expect(person.page.get_by_label("API key", exact=True)).to_have_value("")

    def test_shows_nothing_of_it_to_another_person(
        self, person: Person, ada: User, alan: User, profile: ModelProfile
    ) -> None:
        person.sign_in(ada)
        person.open("/o/acme/settings/profiles/new")
        person.type("Name", "second")

        end_sessions()
        person.click("Create profile")
        sign_in_again(person, alan)

        expect(person.page.get_by_label("Name", exact=True)).to_have_value("")
        assert person.page.evaluate("sessionStorage.getItem('draft')") is None


class TestAPersonWhoSignedInElsewhere:
    def test_keeps_the_card_and_reads_what_to_do(self, person: Person, ada: User, connected: Integration) -> None:
        person.sign_in(ada)
        person.follow("Integrations")
        person.page.context.clear_cookies(name="csrftoken")

        person.click("Test Connection")

        expect(person.page.locator("#page-notice")).to_contain_text("The page has expired")
        expect(person.page.locator(f"#integration-{connected.id}, article").first).to_contain_text("Main")
        person.follow("Reload")
        person.click("Test Connection")
        person.sees("Works")
        expect(person.page.locator("#page-notice")).to_be_empty()
