"""A conversation in the playground: the answer comes beside the prompt, and a person goes on from it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from django.contrib.sessions.models import Session
from playwright.sync_api import expect

from billing.models import CostEvent
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.dispatch.models import Run
from rensei.orgs.access import Access
from rensei.orgs.models import Membership, Org, User
from rensei.tokens.services import create_token
from tests.journeys.person import PASSWORD, Person
from tests.journeys.stack import Stack

pytestmark = [
    pytest.mark.browser,
    pytest.mark.outside,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]

# What the browser does when a person pastes with the mouse: no key is pressed.
PASTE = """(field, text) => {
    field.focus();
    document.execCommand("insertText", false, text);
}"""
# The first three words come within half a second, the rest after that.
SLOW = "[[slow 0.2]] [[reply 40 words]]"


def begin(person: Person, user: User) -> None:
    person.sign_in(user)
    person.follow("Playground")


def answers(person: Person, *, count: int) -> None:
    """Wait until the page shows so many answers, the last one complete."""
    expect(person.page.get_by_role("link", name="Run details")).to_have_count(count)
    expect(person.section("Answer").get_by_text("Succeeded", exact=True)).to_be_visible()


@pytest.fixture
def profile(connected: Integration, make_profile: Callable[..., ModelProfile]) -> ModelProfile:
    return make_profile(name="deep", auth_modes=["byok"])


class TestAMember:
    def test_asks_reads_beside_the_prompt_and_asks_further(
        self, open_either: Callable[..., Person], mia: User, eve: User, profile: ModelProfile
    ) -> None:
        # Two organizations: the stream has to name this one.
        Membership.objects.create(org=Org.objects.get(slug="evil"), user=mia, role="member")
        person = open_either()
        person.sign_in(mia)
        person.open("/o/acme/playground")
        person.type("Message", f"{SLOW} Tell me of the sea.")
        person.click("Dispatch")

        written = person.section("Answer").locator("[data-text]")
        expect(written).to_have_text(re.compile(r"\w"))
        early = written.inner_text()
        expect(person.page.get_by_role("button", name="Dispatch")).to_be_disabled()
        # Typed while the answer comes: it stays.
        person.page.get_by_label("Message", exact=True).fill("[[reply 3 words]] And the waves?")
        answers(person, count=1)
        first = Run.objects.get()
        assert person.reads_the_answer() == first.output_text
        assert first.output_text.startswith(early.strip()[:20])
        exact = person.section("Answer").locator(".turn__cost").get_attribute("title") or ""
        assert Decimal(exact.removeprefix("$")) * 10**12 == CostEvent.objects.get().amount_picodollars
        expect(person.page.get_by_label("Message", exact=True)).to_have_value("[[reply 3 words]] And the waves?")
        person.click("Dispatch")

        answers(person, count=2)
        second = Run.objects.exclude(pk=first.pk).get()
        assert [message["role"] for message in second.input.body["messages"]] == ["user", "assistant", "user"]
        assert second.input.body["messages"][1]["content"][0]["text"] == first.output_text
        assert person.reads_the_answer() == second.output_text
        person.sees(f"{first.output_text[:30]}")
        person.sees(re.compile("for this conversation so far"))
        person.follow("New conversation")
        expect(person.page.get_by_text("Run details")).to_have_count(0)

    def test_gets_a_message_without_an_answer_back(self, person: Person, mia: User, profile: ModelProfile) -> None:
        begin(person, mia)
        person.type("Message", "[[fault:spendlimit]] Go on.")
        person.click("Dispatch")

        expect(person.section("Answer").get_by_text("Failed", exact=True)).to_be_visible()
        person.sees(re.compile("The spend limit"))
        person.page.reload()
        expect(person.page.get_by_label("Message", exact=True)).to_have_value("[[fault:spendlimit]] Go on.")
        person.type("Message", "[[reply 3 words]] Go on.")
        person.click("Dispatch")

        answers(person, count=1)
        assert len(Run.objects.latest("id").input.body["messages"]) == 1

    def test_pastes_with_the_mouse_and_sees_the_quote_follow(
        self, person: Person, mia: User, profile: ModelProfile
    ) -> None:
        begin(person, mia)
        quote = person.page.locator("#quotes .quote .number").first
        before = quote.inner_text()

        person.page.get_by_label("Message", exact=True).evaluate(PASTE, "A long text. " * 500)

        expect(quote).not_to_have_text(before)

    def test_signs_in_again_and_goes_on(self, person: Person, mia: User, profile: ModelProfile) -> None:
        begin(person, mia)
        person.type("Message", "[[reply 3 words]] First.")
        person.click("Dispatch")
        answers(person, count=1)

        Session.objects.all().delete()
        person.page.get_by_label("Message", exact=True).press_sequentially("And then?")
        expect(person.page.get_by_label("Password", exact=True)).to_be_visible()
        person.type("Email", mia.email)
        person.page.get_by_label("Password", exact=True).fill(PASSWORD)
        person.click("Sign in")

        expect(person.page.get_by_label("Message", exact=True)).to_have_value("And then?")
        person.click("Dispatch")
        answers(person, count=2)
        assert len(Run.objects.latest("id").input.body["messages"]) == 3

    def test_reads_the_answer_though_the_stream_is_refused(
        self, person: Person, mia: User, profile: ModelProfile
    ) -> None:
        person.page.route("**/events", lambda route: route.fulfill(status=429, body="{}"))
        begin(person, mia)
        person.type("Message", "[[slow 0.2]] [[reply 9 words]] First.")
        person.click("Dispatch")

        answers(person, count=1)

    def test_copies_the_conversation_as_a_program_that_runs(
        self, person: Person, ada: User, ada_access: Access, profile: ModelProfile, stack: Stack, tmp_path: Path
    ) -> None:
        _, secret = create_token(ada_access, name="snippets")
        begin(person, ada)
        person.type("Message", "[[reply 3 words]] First?")
        person.click("Dispatch")
        answers(person, count=1)
        person.type("Message", "[[reply 4 words]] And 'second'?")
        texts = {}
        for name in ("curl", "Python"):
            person.click(name, role="tab")
            panel = person.page.get_by_role("tabpanel", name=name)
            expect(panel).to_contain_text("second")
            texts[name] = panel.locator("code").inner_text()

        environment = {**os.environ, "RENSEI_AUTH_TOKEN": secret.reveal()}
        for words in (["bash", "-c", texts["curl"]], [sys.executable, "-c", texts["Python"]]):
            done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stdout + done.stderr

        first, *others = Run.objects.order_by("id")
        assert len(others) == 2
        for run in others:
            turns = run.input.body["messages"]
            assert [turn["content"][0]["text"] for turn in turns[1:]] == [
                first.output_text,
                "[[reply 4 words]] And 'second'?",
            ]


class TestABrowserWithoutScripts:
    def test_looks_again_and_asks_further(
        self, open_browser: Callable[..., Person], mia: User, profile: ModelProfile
    ) -> None:
        person = open_browser(java_script_enabled=False)
        begin(person, mia)
        for turn in (1, 2):
            person.type("Message", f"[[reply 3 words]] Question {turn}.")
            person.click("Dispatch")
            person.sees_heading("Conversation")
            again = person.page.get_by_role("link", name="Look again")
            while again.is_visible():
                again.click()
            answers(person, count=turn)

        assert len(Run.objects.latest("id").input.body["messages"]) == 3
