"""Everything works without JavaScript; with it, it is only more pleasant."""

from collections.abc import Callable

import pytest

from rensei.orgs.models import Org, User
from tests.journeys.person import Person

pytestmark = [
    pytest.mark.browser,
    pytest.mark.outside,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]


class TestABrowserWithoutScripts:
    def test_connects_a_key_makes_a_profile_and_reads_an_answer(
        self,
        open_browser: Callable[..., Person],
        acme: Org,
        ada: User,
        catalog: None,
        make_key: Callable[..., str],
    ) -> None:
        person, key = open_browser(java_script_enabled=False), make_key()

        person.sign_in(ada)
        person.follow("Add Provider")
        person.follow("Anthropic Claude")
        person.type("API key", key)
        person.click("Test Connection")
        person.sees("Paste the key again to save it: this page does not keep it.")
        person.type("API key", key)
        person.click("Save")
        person.sees("is connected.")

        person.follow("Model Profiles")
        person.follow("Create profile")
        person.type("Name", "plain")
        person.choose("Model", "claude:claude-haiku-5-5")
        person.click("Create profile")
        person.sees("plain was saved.")

        person.follow("Try it")
        person.type("Message", "Is anybody there?")
        person.click("Dispatch")
        person.sees_heading("Conversation")
        again = person.page.get_by_role("link", name="Look again")
        while again.is_visible():
            again.click()
        assert person.reads_the_answer()
