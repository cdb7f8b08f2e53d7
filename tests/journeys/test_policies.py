"""An owner narrows what a project may use, and reads whom it meets before it counts."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from integrations.models import Integration, PlatformKey
from profiles.models import ModelProfile
from rensei.orgs.access import Access
from rensei.orgs.models import Project, User
from rensei.policies import services as policies
from tests.journeys.person import Person

pytestmark = [
    pytest.mark.browser,
    pytest.mark.outside,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]

NO_BYOK = {"*": {"byok": {"allowed": False}}}


@pytest.fixture
def person(anybody: Person) -> Person:
    return anybody


class TestAnOwner:
    def test_sees_who_is_affected_before_the_policy_of_a_project_is_saved(
        self,
        person: Person,
        ada: User,
        ada_access: Access,
        project: Project,
        connected: Integration,
        make_profile: Callable[..., ModelProfile],
        fill_pool: Callable[[str], PlatformKey],
        enable_metered: Callable[[], None],
    ) -> None:
        scope = ModelProfile.Scope.PROJECT
        make_profile(name="either", auth_modes=["byok", "metered"], scope=scope, project=project, is_default=True)
        make_profile(name="own key only", auth_modes=["byok"], scope=scope, project=project)
        make_profile(name="paid", auth_modes=["metered"], scope=scope, project=project)
        fill_pool("metered")
        enable_metered()
        person.sign_in(ada)
        person.follow("Playground")
        person.choose("Profile", "prof_either")
        person.sees("Runs as byok")

        person.follow("Projects & Access")
        person.follow("My Project")
        person.choose("BYOK for All models", "Deny")
        person.click("Preview changes")

        preview = person.section("Preview")
        expect(preview).to_contain_text("1 profile, 0 runs of the last 7 days would be refused")
        expect(preview.get_by_role("listitem")).to_have_text([re.compile(r"\* BYOK: Inherit\s.*Deny\s*$", re.DOTALL)])
        affected = preview.get_by_role("row")
        expect(affected).to_have_count(3)
        expect(affected.nth(1)).to_contain_text("own key only")
        expect(affected.nth(1)).to_contain_text("AUTHMODES_UNSATISFIABLE")
        expect(affected.nth(2)).to_contain_text("either")
        expect(affected.nth(2)).to_contain_text("Runs as byok")
        expect(affected.nth(2)).to_contain_text("Runs as metered")
        expect(affected.nth(2)).to_contain_text("Your organization, through Rensei's cost ledger")
        assert policies.stored_matrix(ada_access.org, project) == {}

        person.click("Save policy")
        person.sees("The access policy of My Project was saved.")
        assert policies.stored_matrix(ada_access.org, project) == NO_BYOK
        person.sees("Denied by")

        person.follow("Playground")
        person.choose("Profile", "prof_either")
        person.sees("Runs as metered")
        person.type("Message", "Who pays for this?")
        person.click("Dispatch")
        assert person.reads_the_answer()
        person.opens_the_run()
        expect(person.section("Why Metered").get_by_role("listitem")).not_to_have_count(0)
        person.sees("Your organization, through Rensei's cost ledger")
        line = person.section("Ledger entry").get_by_role("row", name="metered.anthropic")
        expect(line).to_contain_text(f"${person.cost()}")
