"""What an owner does with a connected key over the years: rename it, replace it, let it go."""

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.orgs.models import User
from tests.journeys.person import Person

pytestmark = [
    pytest.mark.browser,
    pytest.mark.outside,
    pytest.mark.timeout(900),
    pytest.mark.django_db(transaction=True),
]


@pytest.fixture
def person(anybody: Person) -> Person:
    return anybody


class TestAnOwner:
    def test_renames_rotates_and_removes_a_key(
        self,
        person: Person,
        ada: User,
        connected: Integration,
        make_profile: Callable[..., ModelProfile],
        make_key: Callable[..., str],
    ) -> None:
        make_profile(name="deep", auth_modes=["byok"], integration=connected)
        page, fresh = person.page, make_key()
        person.sign_in(ada)
        person.follow("Integrations")

        person.follow("Edit")
        person.type("Name", "Production")
        person.click("Save")
        person.sees("Production was saved.")

        person.follow("Rotate key")
        person.type("New API key", make_key("revoked"))
        person.click("Test and replace")
        person.sees("Anthropic rejected this key.")
        person.follow("Cancel")
        person.sees(connected.key_hint)
        person.follow("Rotate key")
        person.type("New API key", fresh)
        person.click("Test and replace")
        person.sees("Production uses the new key.")
        person.sees(f"…{fresh[-4:]}")
        expect(page.get_by_text(connected.key_hint)).to_have_count(0)

        dialog = page.get_by_role("dialog")
        person.follow("Remove")
        expect(dialog.get_by_role("heading", name="Production is in use")).to_be_visible()
        expect(dialog.get_by_role("listitem")).to_have_text(["deep"])
        expect(dialog.get_by_role("button", name="Remove")).to_have_count(0)
        person.follow("Cancel", within=dialog)

        person.follow("Model Profiles")
        person.open_menu("Actions for deep")
        person.follow("Delete")
        person.click("Delete", within=dialog)
        person.sees("deep was deleted.")

        person.follow("Integrations")
        person.follow("Remove")
        person.click("Remove", within=dialog)
        person.sees("Production was removed. Its key is gone.")
        person.sees_heading("No provider connected")
