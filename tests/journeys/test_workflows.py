"""Somebody writes a workflow in the page, runs it, and reads what came of it."""

import re
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
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]

DOCUMENT = """\
name: review
nodes:
  - nodeId: draft
    nodeType: action/llm.inference
    config: {profileId: prof_deep, prompt: "[[echo Nobody owns {{ input.topic }}.]]"}
  - nodeId: critique
    nodeType: action/llm.inference
    config: {profileId: prof_deep, prompt: "[[echo Too short: {{ nodes.draft.output }}]]"}
"""
MISTAKEN = DOCUMENT.replace("profileId: prof_deep", "profileId: prof_depe", 1)


@pytest.fixture
def person(anybody: Person) -> Person:
    return anybody


class TestAMember:
    def test_writes_a_workflow_runs_it_and_reads_its_result(
        self, person: Person, mia: User, connected: Integration, make_profile: Callable[..., ModelProfile]
    ) -> None:
        make_profile(name="deep", auth_modes=["byok"])
        person.sign_in(mia)

        person.follow("Workflows")
        person.follow("New workflow")
        person.type("Document", MISTAKEN)
        person.click("Save workflow")
        person.sees("Line 5")
        person.sees("prof_depe")
        person.type("Document", DOCUMENT)
        person.click("Save workflow")
        person.sees("review was created.")
        person.sees("Version 1, 2 nodes")

        person.type("Input", "{}")
        person.click("Run workflow")
        person.sees("This workflow needs an input with topic.")
        person.type("Input", '{"topic": "the sea"}')
        person.click("Run workflow")

        expect(person.page.get_by_role("heading", level=1)).to_have_text(re.compile(r"review\s*Succeeded"))
        expect(person.section("draft Succeeded").locator(".prose-text")).to_have_text("Nobody owns the sea.")
        expect(person.section("critique Succeeded").locator(".prose-text")).to_have_text(
            "Too short: Nobody owns the sea."
        )
        person.follow("review")
        begun = person.section("Runs of this workflow").get_by_role("row").filter(has_text="Mia")
        expect(begun).to_contain_text("Succeeded")
