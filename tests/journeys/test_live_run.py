"""A run that is watched while it lasts: its tokens, its cost and its time move, and end at what the ledger says."""

import re
from collections.abc import Callable
from decimal import Decimal

import pytest
from playwright.sync_api import Locator, expect

from billing.models import CostEvent
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.dispatch.models import Run
from rensei.orgs.models import User
from tests.journeys.person import Person

pytestmark = [
    pytest.mark.outside,
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]

WORDS = 120


def figure(person: Person, name: str) -> Locator:
    return person.page.locator(".figure").filter(has=person.page.get_by_text(name, exact=True)).locator("dd")


def number(text: str) -> Decimal:
    """Read the figure itself, without the line below it."""
    return Decimal(re.sub(r"[^\d.]", "", text.splitlines()[0]))


class TestAMember:
    def test_watches_tokens_cost_and_time_count(
        self, person: Person, mia: User, connected: Integration, make_profile: Callable[..., ModelProfile]
    ) -> None:
        make_profile(name="deep", auth_modes=["byok"])
        person.sign_in(mia)
        person.follow("Playground")
        person.type("Message", f"[[slow 0.15]] [[reply {WORDS} words]] Tell me of the sea.")
        person.click("Dispatch")
        person.opens_the_run()

        tokens, cost, time = (figure(person, name) for name in ("Tokens", "Cost", "Time"))
        expect(tokens).to_have_text(re.compile(r"^\s*≈ [1-9]"))
        expect(cost).to_have_text(re.compile(r"^\s*≈ \$0\.\d*[1-9]"))
        first, spent = number(tokens.inner_text()), number(cost.inner_text())
        # The figures are those of one moment, and the page is loaded anew with each second.
        expect(tokens).not_to_have_text(re.compile(rf"^\s*≈ {first}\D"))
        assert number(tokens.inner_text()) > first
        assert number(cost.inner_text()) > spent
        expect(time).to_have_text(re.compile(r"^\s*[1-9]\d* s"))
        expect(time).not_to_contain_text("ago")

        person.reads_the_answer()
        run, charge = Run.objects.get(), CostEvent.objects.get()
        expect(tokens).to_have_text(re.compile(rf"^\s*{run.usage['output_tokens']}\D"))
        assert charge.output_tokens == run.usage["output_tokens"] > first
        assert charge.amount_picodollars > spent * 10**12
