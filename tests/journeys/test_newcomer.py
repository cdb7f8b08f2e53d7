"""From sign-in to the first answer, and to a cheaper second one."""

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.orgs.models import Org, User
from tests.journeys.person import Person
from tests.journeys.stack import Stack

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900), pytest.mark.django_db(transaction=True)]


# What a person may have to do before the first answer, a key that is refused and a test of each key included.
CLICKS_MAX = 12
# And what they may have to fill in, from the empty organization on, if nothing goes wrong.
FIELDS_MAX = 6


def teal() -> bytes:
    drawn = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(drawn, "PNG")
    return drawn.getvalue()


@pytest.fixture
def person(anybody: Person) -> Person:
    return anybody


class TestANewcomer:
    def test_reads_a_first_answer_after_few_clicks_and_fields(
        self, person: Person, acme: Org, ada: User, catalog: None, make_key: Callable[..., str]
    ) -> None:
        person.sign_in(ada)
        person.sees_heading("Three steps to a first answer")
        person.clicks = person.fields = 0

        person.follow("Add Provider")
        person.follow("Anthropic Claude")
        person.type("API key", make_key())
        person.click("Save")
        person.sees("is connected.")
        person.follow("Model Profiles")
        person.follow("Create profile")
        person.type("Name", "first")
        person.click("Create profile")
        person.follow("Try it")
        person.type("Message", "Is anybody there?")
        person.click("Dispatch")

        assert person.reads_the_answer()
        assert person.clicks <= CLICKS_MAX
        assert person.fields <= FIELDS_MAX

    def test_connects_a_key_makes_a_profile_and_reads_an_answer(
        self,
        person: Person,
        stack: Stack,
        acme: Org,
        ada: User,
        catalog: None,
        simulator: Any,
        make_key: Callable[..., str],
    ) -> None:
        page, wrong, right = person.page, make_key("revoked"), make_key()

        person.sign_in(ada)
        person.sees_heading("Three steps to a first answer")
        for step in ("Connect a provider", "Make a model profile", "Dispatch a run"):
            person.sees_heading(step)

        person.follow("Add Provider")
        person.follow("Anthropic Claude")
        person.type("API key", wrong)
        person.click("Test Connection")
        person.sees("Anthropic rejected this key.")
        person.sees("It may be mistyped, revoked or deleted. Make a new key at")
        assert wrong not in page.content()

        person.type("API key", right)
        person.click("Test Connection")
        expect(page.get_by_role("status").filter(has_text="models")).to_be_visible()
        person.click("Save")
        person.sees("is connected.")
        expect(page.get_by_text("Works", exact=True)).to_be_visible()
        assert right not in page.content()

        person.follow("Model Profiles")
        person.follow("Create profile")
        person.type("Name", "anthropic-deep-reasoning")
        person.choose("Model", "claude:claude-opus-4-1-20250514")
        person.sees("Claude Opus 4.1 is retired")
        person.choose("Reasoning Effort", "high")
        person.sees("Runs as byok")
        person.click("Create profile")
        person.sees("anthropic-deep-reasoning was saved.")

        person.follow("Try it")
        person.type("Message", "What is in this picture?")
        page.get_by_label("Images").set_input_files({"name": "teal.png", "mimeType": "image/png", "buffer": teal()})
        person.click("Dispatch")
        answer = person.reads_the_answer()
        assert "image/png" in answer
        assert person.clicks <= CLICKS_MAX

        person.opens_the_run()
        person.sees("served by claude-opus-5-5")
        person.sees("Your organization, billed directly by the provider")
        expect(person.section("Why BYOK").get_by_role("listitem")).to_have_count(5)
        usage = person.section("Usage and cost")
        expect(usage.get_by_role("row", name=re.compile(r"^Output \d+ \$"))).to_be_visible()
        assert person.cost() > 0
        assert wrong not in stack.logs()
        assert right not in stack.logs()

    def test_pays_less_for_the_same_long_system_prompt_the_second_time(
        self, person: Person, ada: User, connected: Integration, make_profile: Callable[..., ModelProfile]
    ) -> None:
        make_profile(name="librarian", auth_modes=["byok"])
        person.sign_in(ada)
        person.follow("Playground")
        person.type("Message", "Which book is on the first shelf?")
        person.unfold("Advanced")
        person.type("System prompt", "You keep the library, and you know every shelf of it. " * 100)

        person.click("Dispatch")
        person.reads_the_answer()
        person.opens_the_run()
        first = person.cost()
        expect(person.section("Usage and cost").get_by_role("row", name="Cache write")).to_be_visible()
        person.click("Run again")
        person.reads_the_answer()

        expect(person.section("Usage and cost").get_by_role("row", name="Cache read")).to_be_visible()
        assert 0 < person.cost() < first
