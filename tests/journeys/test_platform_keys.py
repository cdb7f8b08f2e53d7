"""Runs under the platform's keys: an operator grants metered and takes it back, and shared runs come to their end."""

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from playwright.sync_api import expect

from billing.models import Entitlement
from integrations.models import PlatformKey
from profiles.models import ModelProfile
from rensei.core.clock import database_now
from rensei.orgs.models import Org, User
from tests.journeys.person import Person

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]


def set_metered(operator: Person, org: Org, action: str) -> None:
    """Choose the action in the admin, read what it allows, and confirm."""
    operator.open("/admin/")
    operator.follow("Entitlements")
    operator.tick(f"Select this object for an action - {org.name}")
    operator.choose("Action:", action)
    operator.click("Go")
    operator.sees("It takes effect on the next request and is recorded in the audit log under your name.")
    operator.click(action)


def dispatch(member: Person, message: str) -> None:
    member.follow("Playground")
    member.type("Message", message)
    member.click("Dispatch")


class TestAnOperator:
    def test_grants_metered_and_takes_it_back(
        self,
        open_either: Callable[..., Person],
        acme: Org,
        grace: User,
        mia: User,
        make_profile: Callable[..., ModelProfile],
        fill_pool: Callable[[str], PlatformKey],
    ) -> None:
        make_profile(name="paid", auth_modes=["metered"])
        fill_pool("metered")
        operator, member = open_either(), open_either()
        operator.sign_in(grace)
        member.sign_in(mia)

        set_metered(operator, acme, "Enable metered")
        operator.sees("Metered enabled for 1 organization(s).")

        dispatch(member, "Who pays for this?")
        member.reads_the_answer()
        cost = member.cost()
        member.opens_the_run()
        member.sees("Your organization, through Rensei's cost ledger")
        expect(member.section("Ledger entry").get_by_role("row", name="metered.anthropic")).to_be_visible()
        member.follow("Usage")
        billed = member.page.get_by_role("definition").filter(has_text="1 metered call")
        expect(billed).to_contain_text(f"${cost}")

        set_metered(operator, acme, "Disable metered")
        operator.sees("Metered disabled for 1 organization(s).")

        dispatch(member, "And for this?")
        member.sees("Organisation is not entitled to use metered auth mode")
        member.sees("Ask your Rensei operator (operator@platform.test) to enable it")
        assert member.page.url.endswith("/playground")


class TestAMember:
    def test_uses_shared_runs_until_the_day_is_used_up(
        self,
        anybody: Person,
        mia: User,
        make_profile: Callable[..., ModelProfile],
        fill_pool: Callable[[str], PlatformKey],
    ) -> None:
        make_profile(name="free", auth_modes=["shared"])
        fill_pool("shared")
        Entitlement.objects.update(shared_runs_per_day=1)
        anybody.sign_in(mia)

        dispatch(anybody, "Is this one free?")
        anybody.reads_the_answer()
        anybody.sees("The platform's free tier")
        dispatch(anybody, "And this one?")

        tomorrow = database_now().date() + timedelta(days=1)
        anybody.sees("The organization has used 1 of its 1 shared runs for today.")
        anybody.sees(f"The quota resets at {tomorrow}T00:00:00Z. Dispatch again then")
        anybody.follow("Usage")
        expect(anybody.page.get_by_role("img", name=re.compile("1 of 1 shared runs used"))).to_be_visible()
